//! A cluster that is not wanted after all: stopped at five moments of its making, it leaves nothing.

use std::time::Duration;

use anyhow::Result;
use edge_api::edge_cluster::TaskState;
use edge_tests::Inventory;
use edge_tests::wait::{Seen, eventually};

use crate::appliance::Appliance;
use crate::phase;
use crate::workload::{self, NAME};

/// Makes and aborts.
pub async fn at_five_moments(appliance: &Appliance) -> Result<()> {
    let file = appliance.site.dir().join("clusters/shop.yaml").display().to_string();
    let before = Inventory::libvirt()?;
    for moment in [Moment::Asked, Moment::Image, Moment::Machine, Moment::ApiServer, Moment::Worker] {
        phase(&format!("aborted {}", moment.words()), async {
            appliance.edgectl(&["cluster", "create", "-f", &file]).await?;
            moment.wait(appliance).await?;
            workload::gone_without_a_trace(appliance, &["abort", NAME, "--wait"], &before).await
        })
        .await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Moment {
    Asked,
    Image,
    Machine,
    ApiServer,
    Worker,
}

impl Moment {
    fn words(self) -> &'static str {
        match self {
            Self::Asked => "as soon as it was asked for",
            Self::Image => "while its image is being made",
            Self::Machine => "when its first machine runs",
            Self::ApiServer => "when its API server answers",
            Self::Worker => "when its worker runs",
        }
    }

    async fn wait(self, appliance: &Appliance) -> Result<()> {
        match self {
            Self::Asked => Ok(()),
            Self::Image => {
                let clusters = appliance.clusters().await?;
                eventually("the image to be made", Duration::from_mins(2), || async {
                    let tasks = clusters.get(NAME).await?.status.map(|status| status.tasks).unwrap_or_default();
                    let image = tasks.iter().find(|task| task.name.contains("image"));
                    Ok::<_, kube::Error>(Seen::when(image.is_some_and(|task| task.state == TaskState::Running), tasks))
                })
                .await?;
                Ok(())
            }
            Self::Machine => workload::machines(appliance, 1).await,
            Self::ApiServer => {
                let clusters = appliance.clusters().await?;
                workload::api_server(clusters.get(NAME).await?.spec.virtual_ip.parse()?).await
            }
            Self::Worker => workload::machines(appliance, 2).await,
        }
    }
}
