//! Ranks that are threads of one process: what several processes do, without MPI.

use std::{
    process,
    sync::{Arc, Barrier, Mutex},
    thread,
};

use pixart_trainer::ranks::{Lost, Place, Ranks, Transport};

/// What all threads see.
struct Shared {
    barrier: Barrier,
    f32s: Mutex<Vec<Vec<f32>>>,
    f64s: Mutex<Vec<Vec<f64>>>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

struct Threads {
    shared: Arc<Shared>,
    place: Place,
}

/// Runs `work` as each of `world` ranks at once, and gives what they return, in their order.
///
/// # Panics
/// When one of them does.
pub fn together<T: Send>(world: usize, work: impl Fn(Arc<Ranks>) -> T + Sync) -> Vec<T> {
    let empty = vec![Vec::new(); world];
    let shared = Arc::new(Shared {
        barrier: Barrier::new(world),
        f32s: Mutex::new(empty),
        f64s: Mutex::new(vec![Vec::new(); world]),
        bytes: Mutex::new(vec![Vec::new(); world]),
    });
    let one = |rank: usize| {
        let shared = shared.clone();
        let place = Place { rank, world, local_rank: rank, local_world: world };
        let ranks = Ranks::over(move || Ok::<_, Lost>(Box::new(Threads { shared, place }) as _));
        work(Arc::new(ranks.expect("threads")))
    };
    thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

impl Threads {
    /// What each rank gave, once all have.
    fn all<T: Clone>(&self, slots: &Mutex<Vec<Vec<T>>>, own: Vec<T>) -> Vec<Vec<T>> {
        slots.lock().expect("nobody panicked")[self.place.rank] = own;
        self.shared.barrier.wait();
        let all = slots.lock().expect("nobody panicked").clone();
        // Nobody gives the next before everybody has these.
        self.shared.barrier.wait();
        all
    }
}

fn sums<T: Copy + std::ops::AddAssign>(all: Vec<Vec<T>>) -> Vec<T> {
    let mut all = all.into_iter();
    let mut sums = all.next().expect("at least one rank");
    for each in all {
        assert_eq!(each.len(), sums.len(), "ranks add up the same");
        sums.iter_mut().zip(each).for_each(|(sum, number)| *sum += number);
    }
    sums
}

impl Transport for Threads {
    fn place(&self) -> Place {
        self.place
    }

    fn sum_f64(&mut self, numbers: Vec<f64>) -> Vec<f64> {
        sums(self.all(&self.shared.f64s, numbers))
    }

    fn sum(&mut self, numbers: Vec<f32>) -> Vec<f32> {
        sums(self.all(&self.shared.f32s, numbers))
    }

    fn sum_shares(&mut self, numbers: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        let sums = self.sum(numbers);
        let before = counts[..self.place.rank].iter().sum::<usize>();
        sums[before..][..counts[self.place.rank]].to_vec()
    }

    fn gather(&mut self, own: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        let all = self.all(&self.shared.f32s, own);
        assert!(all.iter().map(Vec::len).eq(counts.iter().copied()), "as long as was said");
        all.concat()
    }

    fn broadcast(&mut self, numbers: Vec<f32>, from: usize) -> Vec<f32> {
        let count = numbers.len();
        let found = self.all(&self.shared.f32s, numbers).swap_remove(from);
        assert_eq!(found.len(), count, "ranks expect as much");
        found
    }

    fn gather_bytes(&mut self, own: Vec<u8>) -> Vec<Vec<u8>> {
        self.all(&self.shared.bytes, own)
    }

    fn to_first(&mut self, own: Vec<u8>, from: usize, count: usize) -> Vec<u8> {
        let found = self.gather_bytes(own).swap_remove(from);
        assert_eq!(found.len(), count, "as many as the first one expects");
        if self.place.rank == 0 { found } else { Vec::new() }
    }

    fn abort(&self) -> fn(i32) -> ! {
        process::exit
    }
}
