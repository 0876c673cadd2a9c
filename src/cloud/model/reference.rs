//! EC2's view of the resources, and the commands that change it. Commands name resources by their position in the order
//! of creation.

use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;

use ec2::ErrorCode;

/// Content of the embedded image's root file system.
pub(super) const EMBEDDED: u64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Stopped,
    Hibernated,
    Terminated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    pub state: State,
    /// Positions of the attached volumes, root volume first.
    pub volumes: Vec<usize>,
    /// The instance terminates when its guest powers off.
    pub ends_at_power_off: bool,
    pub is_protected: bool,
    pub can_hibernate: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub gib: u64,
    /// The number of the last write.
    pub content: u64,
    pub attachment: Option<Attachment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attachment {
    pub instance: usize,
    pub delete_on_termination: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub gib: u64,
    pub content: u64,
}

/// All resources. Deleted ones, except instances, are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub instances: Vec<Instance>,
    pub volumes: Vec<Option<Volume>>,
    pub snapshots: Vec<Option<Snapshot>>,
    /// The content of each image's root file system.
    pub images: Vec<Option<u64>>,
    /// The instance that each address is associated with.
    pub addresses: Vec<Option<Option<usize>>>,
    /// The number of writes so far.
    pub writes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process is killed before the call has an effect.
    KilledBefore,
    /// The process is killed after the call had its effect.
    KilledAfter,
    /// The call fails without an effect.
    Failed,
}

#[derive(Debug, Clone)]
pub(super) struct Command {
    pub action: Action,
    /// A fault of one of the calls to the host, counted from 0.
    pub fault: Option<(u32, Fault)>,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Launch {
        count: u32,
        image: Option<usize>,
        extra: bool,
        ends_at_power_off: bool,
        can_hibernate: bool,
    },
    Start(usize),
    Stop {
        instance: usize,
        hibernate: bool,
    },
    Terminate(usize),
    Protect {
        instance: usize,
        protect: bool,
    },
    Reboot(usize),
    Fork(usize),
    /// The guest powers itself off.
    PowerOff(usize),
    /// The VMM is killed.
    KillVmm(usize),
    /// The guest writes to a volume.
    Write(usize),
    CreateVolume {
        snapshot: Option<usize>,
    },
    DeleteVolume(usize),
    Attach {
        volume: usize,
        instance: usize,
    },
    Detach(usize),
    Grow(usize),
    CreateSnapshot(usize),
    DeleteSnapshot(usize),
    CreateImage(usize),
    Deregister(usize),
    Allocate,
    Associate {
        address: usize,
        instance: usize,
        may_move: bool,
    },
    Disassociate(usize),
    Release(usize),
}

fn positions<T>(resources: &[Option<T>]) -> Vec<usize> {
    resources.iter().enumerate().filter(|(_, resource)| resource.is_some()).map(|(position, _)| position).collect()
}

impl Model {
    /// Applies an action, as EC2 would. A refused action changes nothing. Returns `None` if a resource that the action
    /// names does not exist.
    pub fn apply(&mut self, action: &Action) -> Option<Result<(), ErrorCode>> {
        match *action {
            Action::Launch { count, image, extra, ends_at_power_off, can_hibernate } => {
                let content = image.map_or(Some(EMBEDDED), |image| *self.images.get(image)?)?;
                for _ in 0..count {
                    let volumes =
                        std::iter::once(content).chain(extra.then_some(0)).map(|content| (1, content)).collect();
                    self.launch(volumes, ends_at_power_off, can_hibernate);
                }
                Some(Ok(()))
            }
            Action::Fork(instance) => {
                let original = self.instances.get(instance)?.clone();
                if original.state != State::Running {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                let volumes = original.volumes.iter().filter_map(|volume| self.volumes[*volume].as_ref());
                let volumes = volumes.map(|volume| (volume.gib, volume.content)).collect();
                self.launch(volumes, original.ends_at_power_off, original.can_hibernate);
                Some(Ok(()))
            }
            Action::Start(instance) => Some(self.start(self.known(instance)?)),
            Action::Stop { instance, hibernate } => Some(self.stop(self.known(instance)?, hibernate)),
            Action::Terminate(instance) => Some(self.terminate(self.known(instance)?)),
            Action::Protect { instance, protect } => {
                let instance = self.instances.get_mut(instance)?;
                if instance.state == State::Terminated {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                instance.is_protected = protect;
                Some(Ok(()))
            }
            Action::Reboot(instance) => match self.instances.get(instance)?.state {
                State::Running => Some(Ok(())),
                _ => Some(Err(ErrorCode::IncorrectInstanceState)),
            },
            Action::PowerOff(instance) => {
                let known = self.instances.get_mut(instance)?;
                match (known.state, known.ends_at_power_off) {
                    (State::Running, true) => self.end(instance),
                    (State::Running, false) => known.state = State::Stopped,
                    _ => {}
                }
                Some(Ok(()))
            }
            Action::KillVmm(instance) => {
                let instance = self.instances.get_mut(instance)?;
                if instance.state == State::Running {
                    instance.state = State::Stopped;
                }
                Some(Ok(()))
            }
            Action::Write(volume) => {
                let attachment = self.volumes.get(volume)?.as_ref()?.attachment;
                let is_running = |attachment: Attachment| self.instances[attachment.instance].state == State::Running;
                if attachment.is_some_and(is_running) {
                    self.writes += 1;
                    self.volumes[volume].as_mut()?.content = self.writes + EMBEDDED;
                }
                Some(Ok(()))
            }
            _ => self.apply_to_storage(action).or_else(|| self.apply_to_address(action)),
        }
    }

    fn known(&self, instance: usize) -> Option<usize> {
        (instance < self.instances.len()).then_some(instance)
    }

    fn launch(&mut self, volumes: Vec<(u64, u64)>, ends_at_power_off: bool, can_hibernate: bool) {
        let instance = self.instances.len();
        let first = self.volumes.len();
        let attachment = Some(Attachment { instance, delete_on_termination: true });
        self.volumes.extend(volumes.into_iter().map(|(gib, content)| Some(Volume { gib, content, attachment })));
        self.instances.push(Instance {
            state: State::Running,
            volumes: (first..self.volumes.len()).collect(),
            ends_at_power_off,
            is_protected: false,
            can_hibernate,
        });
    }

    fn start(&mut self, instance: usize) -> Result<(), ErrorCode> {
        match self.instances[instance].state {
            State::Terminated => Err(ErrorCode::IncorrectInstanceState),
            _ => {
                self.instances[instance].state = State::Running;
                Ok(())
            }
        }
    }

    fn stop(&mut self, instance: usize, hibernate: bool) -> Result<(), ErrorCode> {
        let instance = &mut self.instances[instance];
        if hibernate && !instance.can_hibernate {
            return Err(ErrorCode::UnsupportedHibernationConfiguration);
        }
        match instance.state {
            State::Running => instance.state = if hibernate { State::Hibernated } else { State::Stopped },
            State::Stopped | State::Hibernated if !hibernate => {}
            _ => return Err(ErrorCode::IncorrectInstanceState),
        }
        Ok(())
    }

    fn terminate(&mut self, instance: usize) -> Result<(), ErrorCode> {
        match (self.instances[instance].state, self.instances[instance].is_protected) {
            (State::Terminated, _) => Ok(()),
            (_, true) => Err(ErrorCode::OperationNotPermitted),
            (_, false) => {
                self.end(instance);
                Ok(())
            }
        }
    }

    /// Terminates an instance. Its volumes are deleted or detached, and its addresses are disassociated.
    fn end(&mut self, instance: usize) {
        self.instances[instance].state = State::Terminated;
        for volume in std::mem::take(&mut self.instances[instance].volumes) {
            let attachment = self.volumes[volume].as_mut().and_then(|known| known.attachment.take());
            if attachment.is_some_and(|attachment| attachment.delete_on_termination) {
                self.volumes[volume] = None;
            }
        }
        for address in self.addresses.iter_mut().flatten().filter(|holder| **holder == Some(instance)) {
            *address = None;
        }
    }

    fn apply_to_storage(&mut self, action: &Action) -> Option<Result<(), ErrorCode>> {
        match *action {
            Action::CreateVolume { snapshot } => {
                let new = match snapshot {
                    Some(snapshot) => self.snapshots.get(snapshot)?.clone()?,
                    None => Snapshot { gib: 1, content: 0 },
                };
                self.volumes.push(Some(Volume { gib: new.gib, content: new.content, attachment: None }));
                Some(Ok(()))
            }
            Action::DeleteVolume(volume) => {
                if self.volume(volume)?.attachment.is_some() {
                    return Some(Err(ErrorCode::VolumeInUse));
                }
                self.volumes[volume] = None;
                Some(Ok(()))
            }
            Action::Attach { volume, instance } => {
                self.volume(volume)?;
                let state = self.instances.get(instance)?.state;
                if matches!(state, State::Terminated | State::Hibernated) {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                if self.volume(volume)?.attachment.is_some() {
                    return Some(Err(ErrorCode::VolumeInUse));
                }
                let attachment = Attachment { instance, delete_on_termination: false };
                self.volumes[volume].as_mut()?.attachment = Some(attachment);
                self.instances[instance].volumes.push(volume);
                Some(Ok(()))
            }
            Action::Detach(volume) => {
                let Some(Attachment { instance, .. }) = self.volume(volume)?.attachment else {
                    return Some(Err(ErrorCode::IncorrectState));
                };
                if self.is_hibernated(instance) {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                if self.instances[instance].volumes.first() == Some(&volume) {
                    return Some(Err(ErrorCode::OperationNotPermitted));
                }
                self.volumes[volume].as_mut()?.attachment = None;
                self.instances[instance].volumes.retain(|other| *other != volume);
                Some(Ok(()))
            }
            Action::Grow(volume) => {
                if self.is_frozen(volume)? {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                self.volumes[volume].as_mut()?.gib += 1;
                Some(Ok(()))
            }
            Action::CreateSnapshot(volume) => {
                if self.is_frozen(volume)? {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                let Volume { gib, content, .. } = *self.volume(volume)?;
                self.snapshots.push(Some(Snapshot { gib, content }));
                Some(Ok(()))
            }
            Action::DeleteSnapshot(snapshot) => {
                self.snapshots.get_mut(snapshot)?.take()?;
                Some(Ok(()))
            }
            Action::CreateImage(instance) => {
                let instance = self.instances.get(instance)?;
                if instance.state == State::Terminated {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                let root = self.volume(*instance.volumes.first()?)?.content;
                self.images.push(Some(root));
                Some(Ok(()))
            }
            Action::Deregister(image) => {
                self.images.get_mut(image)?.take()?;
                Some(Ok(()))
            }
            _ => None,
        }
    }

    fn apply_to_address(&mut self, action: &Action) -> Option<Result<(), ErrorCode>> {
        match *action {
            Action::Allocate => self.addresses.push(Some(None)),
            Action::Associate { address, instance, may_move } => {
                let holder = (*self.addresses.get(address)?)?;
                if self.instances.get(instance)?.state == State::Terminated {
                    return Some(Err(ErrorCode::IncorrectInstanceState));
                }
                if holder.is_some_and(|holder| holder != instance) && !may_move {
                    return Some(Err(ErrorCode::ResourceAlreadyAssociated));
                }
                for other in self.addresses.iter_mut().flatten().filter(|holder| **holder == Some(instance)) {
                    *other = None;
                }
                self.addresses[address] = Some(Some(instance));
            }
            Action::Disassociate(address) => {
                if (*self.addresses.get(address)?)?.is_none() {
                    return Some(Err(ErrorCode::InvalidAssociationIdNotFound));
                }
                self.addresses[address] = Some(None);
            }
            Action::Release(address) => {
                if (*self.addresses.get(address)?)?.is_some() {
                    return Some(Err(ErrorCode::InvalidIpAddressInUse));
                }
                self.addresses[address] = None;
            }
            _ => return None,
        }
        Some(Ok(()))
    }

    fn volume(&self, volume: usize) -> Option<&Volume> {
        self.volumes.get(volume)?.as_ref()
    }

    fn is_hibernated(&self, instance: usize) -> bool {
        self.instances[instance].state == State::Hibernated
    }

    /// Returns true if the volume cannot change, because its instance is hibernated.
    fn is_frozen(&self, volume: usize) -> Option<bool> {
        Some(self.volume(volume)?.attachment.is_some_and(|attachment| self.is_hibernated(attachment.instance)))
    }
}

/// Generates commands from the state that they would lead to without faults.
#[derive(Debug)]
pub(super) struct Reference;

impl ReferenceStateMachine for Reference {
    type State = Model;
    type Transition = Command;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(state: &Model) -> BoxedStrategy<Command> {
        let kind = select(vec![Fault::KilledBefore, Fault::KilledAfter, Fault::Failed]);
        let fault = proptest::option::weighted(0.4, (0..24_u32, kind));
        (actions(state), fault).prop_map(|(action, fault)| Command { action, fault }).boxed()
    }

    fn apply(mut state: Model, command: &Command) -> Model {
        // The outcome of a fault is not known here.
        let _ = state.apply(&command.action);
        state
    }
}

/// The weight of an action among others, and the action for the resource at a position.
type WeightedAction = (u32, fn(usize) -> Action);

fn actions(state: &Model) -> BoxedStrategy<Action> {
    let images = proptest::option::of(select_or_none(positions(&state.images))).prop_map(Option::flatten);
    let launch = (1..=2_u32, images, any::<[bool; 3]>()).prop_map(|(count, image, flags)| {
        let [extra, ends_at_power_off, can_hibernate] = flags;
        Action::Launch { count, image, extra, ends_at_power_off, can_hibernate }
    });
    let snapshots = select_or_none(positions(&state.snapshots));
    let create = snapshots.prop_map(|snapshot| Action::CreateVolume { snapshot });
    let mut choices: Vec<(u32, BoxedStrategy<Action>)> =
        vec![(6, launch.boxed()), (2, create.boxed()), (2, Just(Action::Allocate).boxed())];
    let mut each = |weight: u32, known: Vec<usize>, action: fn(usize) -> Action| {
        if !known.is_empty() {
            choices.push((weight, select(known).prop_map(action).boxed()));
        }
    };
    let instances: Vec<usize> = (0..state.instances.len()).collect();
    let of_instance: [WeightedAction; 9] = [
        (5, Action::Start),
        (4, |instance| Action::Stop { instance, hibernate: false }),
        (3, |instance| Action::Stop { instance, hibernate: true }),
        (3, Action::Terminate),
        (1, Action::Reboot),
        (2, Action::Fork),
        (1, Action::PowerOff),
        (1, Action::KillVmm),
        (2, Action::CreateImage),
    ];
    of_instance.into_iter().for_each(|(weight, action)| each(weight, instances.clone(), action));
    each(1, instances.clone(), |instance| Action::Protect { instance, protect: true });
    each(1, instances.clone(), |instance| Action::Protect { instance, protect: false });
    let volumes = positions(&state.volumes);
    let of_volume: [WeightedAction; 5] = [
        (5, Action::Write),
        (2, Action::DeleteVolume),
        (3, Action::Detach),
        (2, Action::Grow),
        (4, Action::CreateSnapshot),
    ];
    of_volume.into_iter().for_each(|(weight, action)| each(weight, volumes.clone(), action));
    each(2, positions(&state.snapshots), Action::DeleteSnapshot);
    each(2, positions(&state.images), Action::Deregister);
    let addresses = positions(&state.addresses);
    each(1, addresses.clone(), Action::Disassociate);
    each(1, addresses.clone(), Action::Release);
    if !instances.is_empty() && !volumes.is_empty() {
        let attach = (select(volumes), select(instances.clone()));
        choices.push((4, attach.prop_map(|(volume, instance)| Action::Attach { volume, instance }).boxed()));
    }
    if !instances.is_empty() && !addresses.is_empty() {
        let associate = (select(addresses), select(instances), any::<bool>());
        let associate =
            associate.prop_map(|(address, instance, may_move)| Action::Associate { address, instance, may_move });
        choices.push((4, associate.boxed()));
    }
    proptest::strategy::Union::new_weighted(choices).boxed()
}

fn select_or_none(known: Vec<usize>) -> BoxedStrategy<Option<usize>> {
    if known.is_empty() { Just(None).boxed() } else { proptest::option::of(select(known)).boxed() }
}
