//! The threads that compute.

use std::sync::{Arc, Mutex};

use tract_linalg::multithread::{Executor, multithread_tract_scope};

/// The threads of an engine, which all its sessions share.
#[derive(Clone)]
pub(super) struct Pool {
    pub executor: Executor,
    /// Held by who computes on a thread of the pool.
    inside: Arc<Mutex<()>>,
}

impl Pool {
    pub fn new(threads: usize) -> Self {
        let executor = match threads {
            1 => Executor::SingleThread,
            _ => Executor::multithread_with_name(threads, "tract"),
        };
        Self { executor, inside: Arc::default() }
    }

    /// Does `work`, whose operators share their work among the threads.
    pub fn outside<R>(&self, work: impl FnOnce() -> R) -> R {
        multithread_tract_scope(self.executor.clone(), work)
    }

    /// Does `work` on a thread of the pool, so that no operator has to wake threads and to be woken by
    /// them in turn.
    ///
    /// One at a time: while it waits for others, a thread takes up whatever waits for the pool, and
    /// tract holds what it has for each thread meanwhile. A second one works on its own thread.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let alone = self.inside.try_lock();
        match (&self.executor, &alone) {
            (Executor::MultiThread(pool), Ok(_)) => pool.install(|| self.outside(work)),
            _ => self.outside(work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread() -> String {
        std::thread::current().name().unwrap_or_default().to_owned()
    }

    #[test]
    fn the_first_computes_inside_and_a_second_beside_it() {
        let pool = Pool::new(2);
        let (first, second) = pool.inside(|| {
            let of_second = std::thread::scope(|scope| scope.spawn(|| pool.inside(thread)).join());
            (thread(), of_second.unwrap())
        });
        assert!(first.starts_with("tract-"), "{first}");
        assert!(!second.starts_with("tract-"), "{second}");
        // It is free again.
        assert!(pool.inside(thread).starts_with("tract-"));
        assert_eq!(Pool::new(1).inside(thread), thread());
    }
}
