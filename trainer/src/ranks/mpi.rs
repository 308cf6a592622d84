//! Ranks that MPI connects: the processes that `mpirun`, `srun` or the like has started.

use std::sync::atomic::{AtomicBool, Ordering};

use mpi::{
    Threading,
    collective::SystemOperation,
    datatype::{Equivalence, PartitionMut},
    environment::Universe,
    ffi,
    raw::AsRaw,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives, Destination, Root, Source},
};

use super::{Lost, Place, Ranks, Transport};

/// MPI cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It was started before.
    #[error("MPI is at work in this process already; it can be started once")]
    Again,
    /// It ended while it was starting.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Whether any thread may call MPI.
static ANY_THREAD: AtomicBool = AtomicBool::new(false);

/// Connects this process with the others that the launcher has started. Started by hand, it is the only one.
///
/// Failures of MPI itself end the process with MPI's own message, as it is with every MPI program.
///
/// # Errors
/// When it was started before.
pub fn start() -> Result<Ranks, StartError> {
    Ranks::over(|| {
        let multiple = Threading::Multiple;
        let (universe, threading) =
            mpi::initialize_with_threading(multiple).ok_or(StartError::Again)?;
        ANY_THREAD.store(threading == multiple, Ordering::Relaxed);
        Ok(Box::new(Mpi::new(universe)) as Box<dyn Transport>)
    })
}

struct Mpi {
    world: SimpleCommunicator,
    place: Place,
    /// Says goodbye when it goes, so it goes last.
    _universe: Universe,
}

impl Mpi {
    fn new(universe: Universe) -> Self {
        let world = universe.world();
        let here = world.split_shared(world.rank());
        let place = Place {
            rank: world.rank() as usize,
            world: world.size() as usize,
            local_rank: here.rank() as usize,
            local_world: here.size() as usize,
        };
        Self { world, place, _universe: universe }
    }

    fn summed<T: Equivalence + Clone + Default>(&self, numbers: &[T]) -> Vec<T> {
        let mut sums = vec![T::default(); numbers.len()];
        self.world.all_reduce_into(numbers, &mut sums[..], SystemOperation::sum());
        sums
    }

    fn gathered<T: Equivalence + Clone + Default>(&self, own: &[T], counts: &[usize]) -> Vec<T> {
        let lengths: Vec<i32> = counts.iter().map(|&count| length(count)).collect();
        let total = counts.iter().sum();
        // The last start is counted in 32 bits, too.
        length(total);
        let mut all = vec![T::default(); total];
        let mut partition = PartitionMut::new(&mut all[..], &lengths[..], starts(&lengths));
        self.world.all_gather_varcount_into(own, &mut partition);
        all
    }
}

impl Transport for Mpi {
    fn place(&self) -> Place {
        self.place
    }

    fn sum_f64(&mut self, numbers: Vec<f64>) -> Vec<f64> {
        self.summed(&numbers)
    }

    fn sum(&mut self, numbers: Vec<f32>) -> Vec<f32> {
        self.summed(&numbers)
    }

    fn sum_shares(&mut self, numbers: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        let lengths: Vec<i32> = counts.iter().map(|&count| length(count)).collect();
        assert_eq!(numbers.len(), counts.iter().sum::<usize>(), "all parts together");
        assert_eq!(counts.len(), self.place.world, "a part for each rank");
        let mut own = vec![0f32; counts[self.place.rank]];
        let operation = SystemOperation::sum();
        // SAFETY: the buffers are as long as the lengths say, which the assertions above make sure of; they,
        // the type, the operation and the communicator live until the call returns.
        unsafe {
            ffi::MPI_Reduce_scatter(
                numbers.as_ptr().cast(),
                own.as_mut_ptr().cast(),
                lengths.as_ptr(),
                f32::equivalent_datatype().as_raw(),
                operation.as_raw(),
                self.world.as_raw(),
            );
        }
        own
    }

    fn gather(&mut self, own: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        self.gathered(&own, counts)
    }

    fn broadcast(&mut self, mut numbers: Vec<f32>, from: usize) -> Vec<f32> {
        let root = self.world.process_at_rank(length(from));
        for part in numbers.chunks_mut(MOST) {
            root.broadcast_into(part);
        }
        numbers
    }

    fn gather_bytes(&mut self, own: Vec<u8>) -> Vec<Vec<u8>> {
        let mut counts = vec![0u64; self.place.world];
        self.world.all_gather_into(&(own.len() as u64), &mut counts[..]);
        let counts: Vec<usize> = counts.into_iter().map(|count| count as usize).collect();
        let mut all = self.gathered(&own, &counts).into_iter();
        counts.iter().map(|&count| all.by_ref().take(count).collect()).collect()
    }

    fn to_first(&mut self, own: Vec<u8>, from: usize, count: usize) -> Vec<u8> {
        let rank = self.place.rank;
        if from == 0 || (rank != 0 && rank != from) {
            return own;
        }
        if rank == from {
            assert_eq!(own.len(), count, "as many as the first one expects");
            let first = self.world.process_at_rank(0);
            own.chunks(MOST).for_each(|part| first.send(part));
            return Vec::new();
        }
        let sender = self.world.process_at_rank(length(from));
        let mut all = vec![0; count];
        for part in all.chunks_mut(MOST) {
            sender.receive_into(part);
        }
        all
    }

    fn abort(&self) -> fn(i32) -> ! {
        abort
    }
}

/// MPI counts in 32 bits; this much at once is far from slow.
const MOST: usize = 1 << 28;

/// A count as MPI takes it. What is sent at once is a piece of 25 MB, or what ranks tell one another: names, prompts.
fn length(count: usize) -> i32 {
    i32::try_from(count).expect("less than 2^31 numbers at once")
}

fn starts(lengths: &[i32]) -> Vec<i32> {
    let before = lengths.iter().scan(0, |sum, length| {
        let start = *sum;
        *sum += length;
        Some(start)
    });
    before.collect()
}

fn abort(code: i32) -> ! {
    if ANY_THREAD.load(Ordering::Relaxed) {
        // SAFETY: MPI was started so that any thread may call it; the communicator of all is MPI's own.
        unsafe {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        }
    }
    // Without goodbye: launchers end the others then.
    std::process::exit(code)
}
