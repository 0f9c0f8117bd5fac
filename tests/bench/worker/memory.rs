//! Memory of a whole agent: the binary that is shipped, enrolled and connected.

use anyhow::Context as _;
use dunlin::api::CreateRollout;
use dunlin::pack::{PackRequest, pack};
use dunlin_protocol::command::Probation;
use dunlin_protocol::report::Progress;
use dunlin_tests::fleet::{FleetBuilder, agent_settings};
use dunlin_tests::operator::{all_at_once, eventually};
use dunlin_tests::process::{Process, children_of};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time for caches and buffers to settle in each state.
const SETTLE: Duration = Duration::from_secs(20);

/// Proportional set size.
pub(crate) fn pss_kib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context(path)?.parse()?)
}

pub(crate) fn measure(agent: &Path, recipe: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(all(agent, recipe))
}

async fn all(agent: &Path, recipe: &Path) -> anyhow::Result<()> {
    let under_test = std::env::current_exe()?.with_file_name("dunlin-under-test");
    let program = under_test.to_str().context("a path in UTF-8")?;
    let mut fleet = FleetBuilder::new(program).devices(1).boot().await?;
    let dir = fleet.dir.path().join("measured");
    let settings = agent_settings(&dir, "measured")?;
    let claim = fleet.operator.claim(1).await?;
    dunlin_agent::enroll::enroll(&settings, &claim).await?;
    let config = dir.join("agent.toml");
    let arguments = [
        "run",
        "--config",
        config.to_str().context("a path in UTF-8")?,
    ];
    let mut process = Process::start(agent, &arguments, &dir.join("agent.log"))?;
    fleet.operator.online(2).await?;
    tokio::time::sleep(SETTLE).await;
    let supervisor = u32::try_from(process.pid())?;
    let worker = worker_of(process.pid())?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    let idle = (mib(pss_kib(supervisor)?), mib(pss_kib(worker)?));
    let model = PathBuf::from(recipe);
    let packed = pack(&PackRequest::new(model), &dir.join("packed"))?.0;
    let manifest = packed.manifest.clone();
    fleet.operator.publish(&packed).await?;
    let request = CreateRollout {
        family: manifest.family.clone(),
        version: manifest.version,
        policy: Some(all_at_once(1)),
        selector: None,
        probation: Some(Probation {
            inferences: 0,
            time_ms: 0,
            ..Probation::default()
        }),
    };
    fleet.operator.client().create_rollout(&request).await?;
    let device = "measured".parse()?;
    eventually("it serves", async || {
        let reported = fleet.operator.reported(&device).await?;
        let model = reported.as_ref().and_then(|r| r.of(&manifest.family));
        let serves = model.is_some_and(|m| m.progress == Progress::Succeeded);
        Ok(if serves {
            Ok(())
        } else {
            Err(format!("{reported:?}"))
        })
    })
    .await?;
    tokio::time::sleep(SETTLE).await;
    let serving = (
        mib(pss_kib(supervisor)?),
        mib(pss_kib(worker_of(process.pid())?)?),
    );
    let length = manifest.files.model.length as f64 / 1e6;
    println!("PSS in MiB of an enrolled, connected agent with its telemetry buffer open:\n");
    println!("| | supervisor | worker | together |\n|---|--:|--:|--:|");
    println!(
        "| no model | **{:.1}** | {:.1} | {:.1} |",
        idle.0,
        idle.1,
        idle.0 + idle.1
    );
    println!(
        "| serving a model of {length:.1} MB | {:.1} | {:.1} | **{:.1}** |\n",
        serving.0,
        serving.1,
        serving.0 + serving.1
    );
    process.terminate().await?;
    fleet.end().await
}

fn worker_of(supervisor: i32) -> anyhow::Result<u32> {
    let child = children_of(supervisor)
        .into_iter()
        .next()
        .context("no worker")?;
    Ok(u32::try_from(child)?)
}
