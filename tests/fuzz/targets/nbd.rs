//! A server of one disk in memory, and a client that says anything. The server must close or answer, and go on.

#[path = "../../nbd/client.rs"]
mod client;
#[path = "../../nbd/fixture.rs"]
mod fixture;
#[path = "../../nbd/memory.rs"]
mod memory;

use std::sync::LazyLock;

use tokio::{io::AsyncWriteExt, runtime::Runtime};

use self::{
    client::{Client, FRAMINGS, Framing},
    fixture::Fixture,
};

/// One server for all inputs: it has to outlive every one of them.
static SERVER: LazyLock<(Runtime, Fixture)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let fixture = runtime.block_on(Fixture::small());
    (runtime, fixture)
});

/// All that a client says after it has connected.
pub(crate) fn nbd_handshake(bytes: &[u8]) {
    let (runtime, fixture) = &*SERVER;
    runtime.block_on(async {
        finish(Client::connect(&fixture.path).await, bytes).await;
        Client::go(&fixture.path, Framing::Simple).await;
    });
}

/// All that a client says in transmission; the first byte says with which framing.
pub(crate) fn nbd_requests(bytes: &[u8]) {
    let Some((&framing, bytes)) = bytes.split_first() else { return };
    let (runtime, fixture) = &*SERVER;
    runtime.block_on(async {
        let client = Client::go(&fixture.path, FRAMINGS[usize::from(framing) % FRAMINGS.len()]).await;
        finish(client, bytes).await;
        Client::go(&fixture.path, Framing::Simple).await;
    });
}

async fn finish(mut client: Client, bytes: &[u8]) {
    let (mut read, mut write) = client.stream.split();
    // The server may close in the middle: that is an answer, too.
    let send = async {
        let _ = write.write_all(bytes).await;
        let _ = write.shutdown().await;
    };
    let mut sink = tokio::io::sink();
    let receive = tokio::io::copy(&mut read, &mut sink);
    let both = async { tokio::join!(send, receive) };
    let _ = tokio::time::timeout(client::HANG, both).await.expect("the server closes");
}
