//! The clients of the control socket, and the order of their requests.
//!
//! A client's requests are handled in order: while its job runs or waits, its later requests wait, too. Jobs run in the
//! order in which they arrived. The loop does not read from a client that has a job, which bounds the queues. A closed
//! client's descriptor stays open until its last request is handled, so its number is not reused before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::job::{ImmediateRequest, Job, Request};

#[derive(Debug, Default)]
pub(super) struct Clients {
    clients: BTreeMap<i32, Client>,
    /// Jobs that wait for the running one, with their clients.
    waiting: VecDeque<(i32, Job)>,
    /// The clients that asked to end the machine at the guest's next reboot.
    ending_at_reboot: BTreeSet<i32>,
}

#[derive(Debug, Default)]
struct Client {
    requests: VecDeque<Request>,
    has_job: bool,
    is_closed: bool,
}

/// The state of a client after its requests have been handled as far as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// All requests are handled: read more.
    Idle,
    /// A job runs or waits: do not read.
    Busy,
    /// The client is closed, and all requests are handled: remove it.
    Gone,
}

impl Clients {
    pub fn add_requests(&mut self, fd: i32, requests: impl IntoIterator<Item = Request>) {
        self.clients.entry(fd).or_default().requests.extend(requests);
    }

    pub fn close(&mut self, fd: i32) {
        self.clients.entry(fd).or_default().is_closed = true;
        self.ending_at_reboot.remove(&fd);
    }

    /// Takes the client's next request, unless it has a job. If the request is a job, adds it to the waiting jobs.
    pub fn next(&mut self, fd: i32) -> Option<ImmediateRequest> {
        let client = self.clients.get_mut(&fd).filter(|client| !client.has_job)?;
        match client.requests.pop_front()? {
            Request::Job(job) => {
                client.has_job = true;
                self.waiting.push_back((fd, job));
                None
            }
            Request::Immediate(request) => Some(request),
        }
    }

    pub fn next_job(&mut self) -> Option<(i32, Job)> {
        self.waiting.pop_front()
    }

    pub fn complete_job(&mut self, fd: i32) {
        self.clients.entry(fd).or_default().has_job = false;
    }

    /// Forgets a client that is gone.
    pub fn progress(&mut self, fd: i32) -> Progress {
        match self.clients.get(&fd) {
            Some(client) if client.has_job => Progress::Busy,
            Some(client) if client.is_closed && client.requests.is_empty() => {
                self.clients.remove(&fd);
                Progress::Gone
            }
            _ => Progress::Idle,
        }
    }

    /// Ends the machine at the guest's next reboot, if the client is still connected then.
    pub fn end_at_reboot(&mut self, fd: i32) {
        if self.clients.get(&fd).is_some_and(|client| !client.is_closed) {
            self.ending_at_reboot.insert(fd);
        }
    }

    pub fn ends_at_reboot(&self) -> bool {
        !self.ending_at_reboot.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Request {
        Request::Job(Job::CtrlAltDel)
    }

    fn status() -> Request {
        Request::Immediate(ImmediateRequest::Status)
    }

    #[test]
    fn request_behind_own_job_waits_and_others_do_not() {
        let mut clients = Clients::default();
        clients.add_requests(5, [status(), job(), status()]);
        clients.add_requests(6, [status()]);
        assert!(matches!(clients.next(5), Some(ImmediateRequest::Status)));
        assert!(clients.next(5).is_none() && clients.next(5).is_none());
        assert_eq!(clients.progress(5), Progress::Busy);
        assert!(matches!(clients.next(6), Some(ImmediateRequest::Status)));
        assert_eq!(clients.progress(6), Progress::Idle);
        assert!(matches!(clients.next_job(), Some((5, Job::CtrlAltDel))));
        assert!(clients.next(5).is_none());
        clients.complete_job(5);
        assert!(matches!(clients.next(5), Some(ImmediateRequest::Status)));
    }

    #[test]
    fn jobs_run_in_order_of_arrival() {
        let mut clients = Clients::default();
        for fd in [7, 5, 6] {
            clients.add_requests(fd, [job()]);
            assert!(clients.next(fd).is_none());
        }
        let order: Vec<i32> = std::iter::from_fn(|| clients.next_job()).map(|(fd, _)| fd).collect();
        assert_eq!(order, [7, 5, 6]);
    }

    #[test]
    fn closed_client_is_gone_after_its_last_request() {
        let mut clients = Clients::default();
        clients.add_requests(5, [job(), Request::Immediate(ImmediateRequest::EndAtReboot)]);
        clients.close(5);
        assert!(clients.next(5).is_none());
        assert_eq!(clients.progress(5), Progress::Busy);
        clients.complete_job(5);
        assert!(matches!(clients.next(5), Some(ImmediateRequest::EndAtReboot)));
        clients.end_at_reboot(5);
        assert!(!clients.ends_at_reboot(), "the client is not connected any more");
        assert_eq!(clients.progress(5), Progress::Gone);
        assert_eq!(clients.progress(5), Progress::Idle);
    }

    #[test]
    fn machine_ends_at_reboot_while_one_requester_is_connected() {
        let mut clients = Clients::default();
        for fd in [5, 6] {
            clients.add_requests(fd, []);
            clients.end_at_reboot(fd);
        }
        clients.close(6);
        assert!(clients.ends_at_reboot());
        clients.close(5);
        assert!(!clients.ends_at_reboot());
    }
}
