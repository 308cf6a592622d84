//! Several processes ("ranks") that train one model together: what they tell each other, whoever carries it.
//!
//! What is sent goes through a thread of its own, one thing after the other, so that gradients travel while others
//! are computed. Every rank calls the same operations in the same order.

mod exchange;
#[cfg(feature = "mpi")]
pub mod mpi;

use std::{
    fmt::{self, Debug, Formatter},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

pub use exchange::ExchangeError;
pub(crate) use exchange::{Exchange, Shares};

/// Who carries numbers between ranks. All operations wait until they are done, and are called on one thread, that
/// which made the carrier.
pub trait Transport {
    /// Where this process stands.
    fn place(&self) -> Place;
    /// The sums over all ranks.
    fn sum_f64(&mut self, numbers: Vec<f64>) -> Vec<f64>;
    /// The sums over all ranks, the same bits on each.
    fn sum(&mut self, numbers: Vec<f32>) -> Vec<f32>;
    /// The part of the sums over all ranks that belongs to this one: `counts` has the length of each one's.
    fn sum_shares(&mut self, numbers: Vec<f32>, counts: &[usize]) -> Vec<f32>;
    /// The parts of all ranks, one after the other.
    fn gather(&mut self, own: Vec<f32>, counts: &[usize]) -> Vec<f32>;
    /// The numbers of the rank `from`; the others give as many.
    fn broadcast(&mut self, numbers: Vec<f32>, from: usize) -> Vec<f32>;
    /// The bytes of each rank.
    fn gather_bytes(&mut self, own: Vec<u8>) -> Vec<Vec<u8>>;
    /// The bytes of the rank `from`, `count` of them, for the first one; all others give and get nothing.
    fn to_first(&mut self, own: Vec<u8>, from: usize, count: usize) -> Vec<u8>;
    /// What ends all ranks, from any thread, with this exit code; the others are not asked.
    fn abort(&self) -> fn(i32) -> !;
}

/// Where a process stands among those that train together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// Its number on its machine, from 0: that of the device it takes.
    pub local_rank: usize,
    /// How many there are on its machine.
    pub local_world: usize,
}

type Job = Box<dyn FnOnce(&mut dyn Transport) + Send>;

/// The ranks that train together, as seen by one of them. While it lives, others may wait for it.
pub struct Ranks {
    place: Place,
    jobs: Mutex<Option<Sender<Job>>>,
    carrier: Option<JoinHandle<()>>,
    abort: fn(i32) -> !,
    sent: AtomicU64,
}

/// The result of an operation that is under way.
pub struct Pending<T>(Receiver<T>);

/// The ranks cannot talk to each other any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the connection to the other processes is gone; they have ended, or the network has failed"
)]
pub struct Lost;

impl<T> Pending<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// When the thread that carries it is gone.
    pub fn wait(self) -> Result<T, Lost> {
        self.0.recv().map_err(|_| Lost)
    }
}

impl Ranks {
    /// The ranks that a transport connects; it is made on the thread that will use it.
    ///
    /// # Errors
    /// What `make` fails with.
    pub fn over<E: From<Lost> + Send + 'static>(
        make: impl FnOnce() -> Result<Box<dyn Transport>, E> + Send + 'static,
    ) -> Result<Self, E> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (answer, made) = mpsc::channel();
        let carrier = thread::spawn(move || match make() {
            Err(error) => drop(answer.send(Err(error))),
            Ok(mut transport) => {
                if answer.send(Ok((transport.place(), transport.abort()))).is_ok() {
                    inbox.iter().for_each(|job| job(transport.as_mut()));
                }
            }
        });
        let (place, abort) = made.recv().map_err(|_| Lost)??;
        let (jobs, carrier) = (Mutex::new(Some(jobs)), Some(carrier));
        Ok(Self { place, jobs, carrier, abort, sent: AtomicU64::new(0) })
    }

    /// Where this process stands.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Ends all ranks at once, with this exit code: for a rank that fails on its own, which the others would wait
    /// for without end.
    pub fn abort(&self, code: i32) -> ! {
        (self.abort)(code)
    }

    /// Whether it is the one that writes files and tells how it goes.
    pub fn is_first(&self) -> bool {
        self.place.rank == 0
    }

    /// Bytes of weights, gradients and states that were given to be sent so far. What travels over the network depends
    /// on the algorithm of the transport: a ring that takes a mean over n sends 2 (n − 1) / n times as much.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The sums over all ranks.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn sum_f64(&self, numbers: Vec<f64>) -> Result<Vec<f64>, Lost> {
        self.start(|transport| transport.sum_f64(numbers)).wait()
    }

    /// The sums over all ranks.
    pub fn sum(&self, numbers: Vec<f32>) -> Pending<Vec<f32>> {
        self.count(&numbers);
        self.start(|transport| transport.sum(numbers))
    }

    /// This rank's part of the sums; `counts` has the length of each one's.
    pub fn sum_shares(&self, numbers: Vec<f32>, counts: Vec<usize>) -> Pending<Vec<f32>> {
        self.count(&numbers);
        self.start(move |transport| transport.sum_shares(numbers, &counts))
    }

    /// The parts of all ranks, one after the other.
    pub fn gather(&self, own: Vec<f32>, counts: Vec<usize>) -> Pending<Vec<f32>> {
        self.count(&own);
        self.start(move |transport| transport.gather(own, &counts))
    }

    /// The numbers of the rank `from`.
    pub fn broadcast(&self, numbers: Vec<f32>, from: usize) -> Pending<Vec<f32>> {
        if from == self.place.rank {
            self.count(&numbers);
        }
        self.start(move |transport| transport.broadcast(numbers, from))
    }

    /// The bytes of each rank.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn gather_bytes(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, Lost> {
        self.start(|transport| transport.gather_bytes(own)).wait()
    }

    /// The bytes of the rank `from`, `count` of them, for the first one; all others give and get nothing.
    pub fn to_first(&self, own: Vec<u8>, from: usize, count: usize) -> Pending<Vec<u8>> {
        if from == self.place.rank && from > 0 {
            self.count(&own);
        }
        self.start(move |transport| transport.to_first(own, from, count))
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn meet(&self) -> Result<(), Lost> {
        self.sum_f64(vec![0.0]).map(|_| ())
    }

    fn count<T>(&self, numbers: &[T]) {
        self.sent.fetch_add(size_of_val(numbers) as u64, Ordering::Relaxed);
    }

    fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Transport) -> T + Send + 'static,
    ) -> Pending<T> {
        let (answer, result) = mpsc::channel();
        // Nobody may wait for the answer any more. Without a carrier, the wait fails.
        let job: Job = Box::new(move |transport| drop(answer.send(work(transport))));
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = jobs.as_ref() {
            let _ = jobs.send(job);
        }
        Pending(result)
    }
}

impl Drop for Ranks {
    /// Waits until what was started is done, and the transport has said goodbye.
    fn drop(&mut self) {
        if thread::panicking() {
            // The others wait for this rank where it will never come.
            self.abort(101);
        }
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(carrier) = self.carrier.take() {
            // What it panicked with, it has told.
            let _ = carrier.join();
        }
    }
}

impl Debug for Ranks {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranks").field("place", &self.place).finish_non_exhaustive()
    }
}
