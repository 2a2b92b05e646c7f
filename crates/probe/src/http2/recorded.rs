//! Answers over HTTP/2 as Go's clients judge them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy, duplex, sink};
use tokio::time::timeout;

use super::{flag, get, kind, push_frame};
use crate::request::Request;
use crate::verdict::Reason;
use crate::{Finding, grpc};

const RECORDED: &str = include_str!("../fixtures/http2.tsv");

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.trim_matches('-').chars().collect();
    digits
        .chunks(2)
        .map(|pair| {
            let byte = u8::from_str_radix(&pair.iter().collect::<String>(), 16);
            byte.expect("hexadecimal digits")
        })
        .collect()
}

/// An app that sends SETTINGS, and once it has the whole request this answer.
async fn app(mut stream: DuplexStream, settings: Vec<u8>, answer: Vec<u8>) {
    let mut first = Vec::new();
    push_frame(&mut first, kind::SETTINGS, 0, 0, &settings);
    stream.write_all(&first).await.expect("write");
    let _ = stream.read_exact(&mut [0; 24]).await.expect("a preface");
    let mut header = [0; 9];
    while stream.read_exact(&mut header).await.is_ok() {
        let [_, high, low, frame, flags, ..] = header;
        let length = u16::from_be_bytes([high, low]);
        let _ = stream
            .read_exact(&mut vec![0; length.into()])
            .await
            .expect("a payload");
        if matches!(frame, kind::DATA | kind::HEADERS) && flags & flag::END_STREAM != 0 {
            break;
        }
    }
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
    let _ = copy(&mut stream, &mut sink()).await;
}

fn of_get(result: Result<crate::http1::ResponseHead, Finding>) -> String {
    match result {
        Ok(head) => head.status.to_string(),
        Err(finding) if finding.reason == Reason::BodyIncomplete => {
            format!("body {}", finding.status)
        }
        Err(_) => "fail".to_owned(),
    }
}

fn of_grpc(result: Result<Finding, Finding>) -> String {
    let (Ok(finding) | Err(finding)) = result;
    match finding.reason {
        Reason::Healthy => "serving",
        Reason::NotServing => "not serving",
        _ => "fail",
    }
    .to_owned()
}

#[tokio::test(start_paused = true)]
async fn answers_are_judged_as_by_go() {
    let head = b"GET /x HTTP/1.1\r\nHost: app\r\n\r\n";
    let request = Request::parse(head).expect("valid").expect("whole");
    let mut wrong = Vec::new();
    for line in RECORDED.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<_> = line.split('\t').collect();
        let [client, name, settings, answer, expect] = fields[..] else {
            panic!("{line}");
        };
        let (ours, apps) = duplex(64 * 1024);
        let app = tokio::spawn(app(apps, bytes(settings), bytes(answer)));
        let result = timeout(Duration::from_secs(10), async {
            match client {
                "get" => of_get(get(ours, &request, "app", false, None).await),
                _ => {
                    let address = "10.0.0.1:80".parse().expect("an address");
                    of_grpc(grpc::call(ours, address, "", None, None).await)
                }
            }
        });
        let result = result.await.unwrap_or_else(|_| "timeout".to_owned());
        app.abort();
        if result != expect {
            wrong.push(format!("{client} {name}: {result} instead of {expect}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
