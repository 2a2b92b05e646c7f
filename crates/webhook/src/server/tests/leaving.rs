//! How a server shuts down.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::client::Dial;
use super::*;

#[tokio::test]
async fn open_connections_are_closed_and_new_ones_are_served_for_a_while() {
    let webhook = Webhook::start();
    let dial = Dial::new(webhook.address, &webhook.authority);
    let mut standing = Vec::new();
    for dial in [dial.clone(), dial.clone().http1()] {
        let mut connection = dial.connect().await.expect("connected");
        assert!(
            connection
                .review(&review())
                .await
                .expect("answered")
                .is_patched()
        );
        standing.push(connection);
    }
    webhook.phase.send_replace(Phase::Leaving);
    let closing = async {
        while (webhook.connections)() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LATE, closing).await.expect("they close");
    assert!(dial.review(&review()).await.expect("answered").is_patched());
}

#[tokio::test]
async fn a_request_in_progress_is_answered_before_the_end() {
    let mut webhook = Webhook::start();
    let dial = Dial::new(webhook.address, &webhook.authority).http1();
    let mut stream = dial.tls().await.expect("handshake");
    let body = review();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.flush().await.expect("sent");
    // The server sends 100 Continue once it has read the head: from then on the request is in progress.
    let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    let read = stream.read_exact(&mut go_on);
    let _ = timeout(LATE, read).await.expect("in time").expect("read");
    assert!(go_on.starts_with(b"HTTP/1.1 100 "));
    stream.write_all(&body[..10]).await.expect("sent");
    stream.flush().await.expect("sent");
    webhook.phase.send_replace(Phase::Ending);
    stream.write_all(&body[10..]).await.expect("sent");
    let mut received = Vec::new();
    let read = stream.read_to_end(&mut received);
    let _ = timeout(LATE, read).await.expect("closed");
    assert!(
        received.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&received)
    );
    timeout(LATE, &mut webhook.task)
        .await
        .expect("ended")
        .expect("well");
}
