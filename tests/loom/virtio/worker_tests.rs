use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::QueueState;
use super::worker::{self, Serve, Wakeups, Worker};
use crate::check;
use crate::cpu::time::ThreadClock;
use crate::sandbox::calls::ThreadKind;
use crate::sandbox::threads;

/// The driver's view of the device.
#[derive(Debug)]
struct Driver {
    served: Mutex<u32>,
    changed: Condvar,
    /// Counts the services that were dropped.
    dropped: AtomicU32,
}

impl Driver {
    fn new() -> Arc<Driver> {
        Arc::new(Driver { served: Mutex::new(0), changed: Condvar::new(), dropped: AtomicU32::new(0) })
    }

    /// Waits until the device has served `count` kicks.
    fn await_served(&self, count: u32) {
        let mut served = self.served.lock().unwrap();
        while *served < count {
            served = self.changed.wait(served).unwrap();
        }
    }

    fn dropped(&self) -> u32 {
        self.dropped.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Service<const ENDS_BY_ITSELF: bool> {
    wakeups: Arc<Wakeups>,
    driver: Arc<Driver>,
    served: u32,
}

type Queue = Service<false>;
/// A service whose thread ends after one kick, as it does if the queue is invalid.
type InvalidQueue = Service<true>;

impl<const ENDS_BY_ITSELF: bool> Serve for Service<ENDS_BY_ITSELF> {
    const KIND: ThreadKind = ThreadKind::Block;

    fn run(&mut self) {
        loop {
            let mut is_kicked = false;
            let is_running = self.wakeups.wait(|| is_kicked = true);
            if is_kicked {
                self.served += 1;
                *self.driver.served.lock().unwrap() += 1;
                self.driver.changed.notify_all();
            }
            if !is_running || ENDS_BY_ITSELF && is_kicked {
                return;
            }
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        vec![QueueState { served: self.served }]
    }
}

impl<const ENDS_BY_ITSELF: bool> Drop for Service<ENDS_BY_ITSELF> {
    fn drop(&mut self) {
        self.driver.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

fn spawn<const ENDS_BY_ITSELF: bool>(driver: &Arc<Driver>) -> (Worker<Service<ENDS_BY_ITSELF>>, Arc<Wakeups>) {
    let mut of_service = None;
    let make = |wakeups: Arc<Wakeups>| {
        of_service = Some(Arc::clone(&wakeups));
        Ok(Service { wakeups, driver: Arc::clone(driver), served: 0 })
    };
    let worker = Worker::spawn("test", Arc::new(ThreadClock::new()), make).unwrap();
    (worker, of_service.unwrap())
}

/// Starts the driver's thread: it kicks the queue and waits until the device has served the kick.
fn kick_and_wait(driver: &Arc<Driver>, wakeups: &Arc<Wakeups>) -> thread::JoinHandle<()> {
    let (driver, wakeups) = (Arc::clone(driver), Arc::clone(wakeups));
    thread::spawn(move || {
        wakeups.kick();
        driver.await_served(1);
    })
}

#[test]
fn kick_at_any_time_around_pause_is_served() {
    check(6, || {
        let driver = Driver::new();
        let (worker, wakeups) = spawn::<false>(&driver);
        let mut worker: Option<Worker<Queue>> = Some(worker);
        let kicking = kick_and_wait(&driver, &wakeups);
        let [paused] = &worker::pause(&mut worker)[..] else { panic!("the service was not returned") };
        assert!(paused.served <= 1);
        worker::resume(&mut worker, "test").unwrap();
        kicking.join().unwrap();
        assert_eq!(worker::pause(&mut worker), [QueueState { served: 1 }]);
        drop(worker);
        assert_eq!(driver.dropped(), 1);
    });
}

#[test]
fn paused_service_does_not_run() {
    check(8, || {
        let driver = Driver::new();
        let (mut worker, wakeups) = spawn::<false>(&driver);
        let served = worker.pause().map(|service: &Queue| service.served).unwrap();
        wakeups.kick();
        assert_eq!((*driver.served.lock().unwrap(), served), (0, 0));
        worker.resume().unwrap();
        driver.await_served(1);
    });
}

#[test]
fn service_is_returned_once() {
    check(8, || {
        let driver = Driver::new();
        let (mut worker, _) = spawn::<false>(&driver);
        let first = worker.pause().map(std::ptr::from_ref::<Queue>);
        assert!(first.is_some());
        assert_eq!(worker.pause().map(std::ptr::from_ref), first);
        worker.resume().unwrap();
        // Resuming a running thread does nothing.
        worker.resume().unwrap();
        assert!(worker.pause().is_some());
        assert_eq!(driver.dropped(), 0);
        drop(worker);
        assert_eq!(driver.dropped(), 1);
    });
}

#[test]
fn drop_stops_running_thread() {
    check(8, || {
        let driver = Driver::new();
        let (worker, wakeups) = spawn::<false>(&driver);
        let kicking = thread::spawn(move || wakeups.kick());
        drop::<Worker<Queue>>(worker);
        assert_eq!(driver.dropped(), 1);
        kicking.join().unwrap();
    });
}

#[test]
fn thread_that_ended_by_itself_can_be_paused_and_resumed() {
    check(8, || {
        let driver = Driver::new();
        let (mut worker, wakeups) = spawn::<true>(&driver);
        let kicking = kick_and_wait(&driver, &wakeups);
        assert!(worker.pause().is_some());
        worker.resume().unwrap();
        kicking.join().unwrap();
        assert_eq!(worker.pause().map(|service: &InvalidQueue| service.served), Some(1));
        drop(worker);
        assert_eq!(driver.dropped(), 1);
    });
}

#[test]
fn thread_that_ends_by_itself_can_be_joined() {
    check(8, || {
        let driver = Driver::new();
        let (worker, wakeups) = spawn::<true>(&driver);
        wakeups.kick();
        worker.join_for_test();
        assert_eq!((driver.dropped(), *driver.served.lock().unwrap()), (1, 1));
    });
}

#[test]
fn device_whose_thread_cannot_start_again_is_lost() {
    check(8, || {
        let driver = Driver::new();
        let (worker, _) = spawn::<false>(&driver);
        let mut worker: Option<Worker<Queue>> = Some(worker);
        worker::pause(&mut worker);
        threads::refuse();
        let error = worker::resume(&mut worker, "test").unwrap_err();
        assert_eq!((error.device, error.source.kind()), ("test", io::ErrorKind::WouldBlock));
        assert_eq!(driver.dropped(), 1);
        assert_eq!(worker::pause(&mut worker), []);
    });
}

#[test]
fn pause_and_resume_of_inactive_device_do_nothing() {
    check(1, || {
        assert_eq!(worker::pause::<Queue>(&mut None), []);
        assert!(worker::resume::<Queue>(&mut None, "test").is_ok());
    });
}
