//! Carrying out what the updater wants of the worker and the server.

use super::updater::Order;
use super::{Shell, now_ms};
use crate::device::Event;
use crate::pipe::ToWorker;
use dunlin_protocol::id::Digest;

impl Shell {
    /// Feeds an event and does what follows.
    pub(super) async fn feed(&mut self, event: Event) {
        let orders = self.updater.feed(event, now_ms()).await;
        self.obey(orders).await;
    }

    /// Hands a bundle's detectors on to the worker that serves it now.
    pub(super) async fn resume_detectors(&self, bundle: Digest) {
        if let Some(state) = self.detectors.of(bundle) {
            let state = Box::new(state.clone());
            self.tell(ToWorker::Resume { bundle, state }).await;
        }
    }

    pub(super) async fn tell(&self, message: ToWorker) {
        if let Some(worker) = &self.worker {
            worker.say(message).await;
        }
    }

    pub(super) async fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Activate { slot, bundle } => {
                    self.tell(ToWorker::Activate { slot, bundle }).await;
                }
                Order::Deactivate { family } => self.tell(ToWorker::Deactivate { family }).await,
                Order::Shadow {
                    slot,
                    bundle,
                    rules,
                } => {
                    let shadow = ToWorker::Shadow {
                        slot,
                        bundle,
                        rules,
                    };
                    self.tell(shadow).await;
                }
                Order::EndShadow { family } => self.tell(ToWorker::EndShadow { family }).await,
                Order::Report => self.send_report(),
                Order::Event {
                    code,
                    detail,
                    bundle,
                } => self.record_event(code, detail, bundle).await,
            }
        }
    }
}
