//! Serves a disk in memory: what the protocol alone costs. `nbd_memory tcp:PORT|unix:PATH [MEBIBYTES]`, until Ctrl-C.

use std::{error::Error, net::Ipv4Addr, path::Path, sync::Arc};

use s3bd::nbd::{Export, Limits, Listener, Server};

#[allow(dead_code)]
#[path = "../nbd/memory.rs"]
mod memory;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments: Vec<String> = std::env::args().collect();
    let address = arguments.get(1).ok_or("nbd_memory tcp:PORT|unix:PATH [MEBIBYTES]")?;
    let mebibytes: u64 = arguments.get(2).map_or(Ok(1024), |text| text.parse())?;
    let listener = match address.split_once(':') {
        Some(("tcp", port)) => Listener::bind_tcp((Ipv4Addr::LOCALHOST, port.parse()?).into())?,
        Some(("unix", path)) => Listener::bind_unix(Path::new(path)).await?,
        _ => return Err("neither tcp: nor unix:".into()),
    };
    let export = Export {
        name: "memory".to_owned(),
        description: "a disk in memory".to_owned(),
        device: Arc::new(memory::Memory::new(mebibytes << 20)),
    };
    let server = Server::new(Arc::new(export), Limits::default());
    server.serve(vec![listener], async { tokio::signal::ctrl_c().await.expect("a signal handler") }).await;
    Ok(())
}
