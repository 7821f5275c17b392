//! The guest's services: who they are, and how they are told of what came.

use interconnect::station::{Alerts, Client};
use ipc::abi::Error;
use ipc::message::Caller;
use rt::capability::Notification;
use rt::start::Start;

use crate::nic::spanning;

/// What the owner of the guest's memory calls the notification.
const MEMORY: &str = "arrived-memory";
/// What the guest's platform calls it.
const PLATFORM: &str = "arrived-platform";

/// The services of a guest that spans nodes.
pub struct Clients {
    platform: usize,
    memory: usize,
    arrived_platform: Option<Notification>,
    arrived_memory: Option<Notification>,
}

impl Clients {
    /// Those of this node; `None` when its guest spans no others.
    pub fn of(start: &Start<'_>) -> Option<Self> {
        spanning(start).map(|guest| Self {
            platform: guest.platform.into(),
            memory: guest.memory.into(),
            arrived_platform: start.notification(PLATFORM).ok(),
            arrived_memory: start.notification(MEMORY).ok(),
        })
    }

    /// Which of them calls, if one does.
    pub fn find(&self, caller: Caller) -> Option<Client> {
        if caller.service == self.memory {
            return Some(Client::Memory);
        }
        (caller.service == self.platform).then_some(Client::Platform)
    }

    /// Tells them that there is something to ask for.
    pub fn tell(&self, alerts: Alerts) {
        let told = [(alerts.memory, &self.arrived_memory), (alerts.platform, &self.arrived_platform)];
        for notification in told.into_iter().filter(|(is_due, _)| *is_due).filter_map(|(_, to)| to.as_ref()) {
            // Its next life is told instead. One that is down asks when it begins again.
            if notification.raise() == Err(Error::Restarted) {
                let _ = notification.raise();
            }
        }
    }
}
