//! The result of answers that are divided into segments in every way.

use super::*;

extern crate std;
use std::vec::Vec;

impl Bytes for &[u8] {
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let from = self.get(at as usize..)?;
        from.first_chunk().copied()
    }
}

/// The sequence number of the first byte, so that numbers overflow within an answer.
const FIRST: u32 = u32::MAX - 20;

fn answer(expected: u32) -> Answer {
    Answer {
        destination: SockAddr {
            ip: [0; 4],
            port: 80,
        },
        next: FIRST,
        since_ns: 0,
        expected,
        skip: 0,
        have: 0,
        part: [0; PART],
    }
}

/// The result of an answer whose segments have at most `size` bytes each.
fn read(expected: u32, bytes: &[u8], size: usize) -> Option<Known> {
    let mut answer = answer(expected);
    let mut seq = FIRST;
    for segment in bytes.chunks(size) {
        let length = segment.len() as u32;
        if let Some(known) = answer.segment(&segment, seq, 0, length) {
            return Some(known);
        }
        seq = seq.wrapping_add(length);
    }
    None
}

/// Checks the result, however the answer is divided into segments.
fn check(expected: u32, bytes: &[u8], result: Option<Known>) {
    for size in 1..=bytes.len() {
        let read = read(expected, bytes, size);
        assert_eq!(read, result, "segments of {size} bytes of {bytes:?}");
    }
}

fn http(text: &str, result: Option<Known>) {
    check(STATUS_LINE, text.as_bytes(), result);
}

fn frame_of(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

/// What an app sends before it answers: SETTINGS, an acknowledgement, WINDOW_UPDATE, PING and, on the stream, HEADERS.
fn before_the_answer() -> Vec<u8> {
    [
        frame_of(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
        frame_of(SETTINGS, 1, 0, &[]),
        frame_of(8, 0, 0, &[0, 0, 0, 12]),
        frame_of(6, 0, 0, &[1; 8]),
        frame_of(HEADERS, 4, 1, &[0x88; 40]),
    ]
    .concat()
}

/// Checks the result of an app that sends `frames` after [`before_the_answer`].
fn grpc(frames: &[Vec<u8>], result: Option<Known>) {
    let bytes = [before_the_answer(), frames.concat()].concat();
    check(FIRST_FRAME, &bytes, result);
}

fn data(payload: &[u8]) -> Vec<u8> {
    frame_of(DATA, 0, 1, payload)
}

fn trailers() -> Vec<u8> {
    frame_of(HEADERS, 5, 1, &[0x40; 12])
}

const FAILED: Option<Known> = Some(known(GRPC_FAILED, 0));
const NOT_READ: Option<Known> = Some(known(UNREAD, 0));

#[test]
fn the_status_line_has_the_result_of_http() {
    for status in [101, 200, 204, 302, 404, 503, 999] {
        let text = std::format!("HTTP/1.1 {status} reason\r\n\r\n");
        http(&text, Some(known(HTTP_STATUS, status)));
    }
    http("HTTP/1.0 200\r\n", Some(known(HTTP_STATUS, 200)));
    http("HTTP/1.1 200\n", Some(known(HTTP_STATUS, 200)));
}

#[test]
fn an_interim_answer_or_an_unusual_status_line_is_not_read() {
    for text in [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        "HTTP/1.1 103 Early Hints\r\n\r\n",
        "HTTP/1.1  200 OK\r\n",
        "HTTP/1.2 200 OK\r\n",
        "HTTP/1.1 2000 \r\n",
        "HTTP/1.1 2x0 OK\r\n",
    ] {
        http(text, NOT_READ);
    }
}

#[test]
fn other_bytes_are_not_http() {
    http("SSH-2.0-OpenSSH_9.6\r\n", Some(known(INVALID, 0)));
    http(
        "\x15\x03\x01\x00\x02\x02\x46............",
        Some(known(INVALID, 0)),
    );
}

#[test]
fn there_is_no_result_before_the_status_code_ends() {
    http("HTTP/1.1 200", None);
    http("H", None);
}

#[test]
fn the_message_has_the_result_of_grpc() {
    for status in 0..4 {
        let message = data(&[0, 0, 0, 0, 2, 8, status]);
        grpc(
            &[message, trailers()],
            Some(known(GRPC_STATUS, status.into())),
        );
    }
    grpc(&[data(&[0; 5]), trailers()], Some(known(GRPC_STATUS, 0)));
    grpc(
        &[data(&[]), data(&[0, 0, 0, 0, 2, 8, 1])],
        Some(known(GRPC_STATUS, 1)),
    );
}

#[test]
fn a_call_that_ends_without_a_message_or_trailers_has_failed() {
    // Trailers only: unimplemented, or a service that is not found.
    let bytes = [frame_of(SETTINGS, 0, 0, &[]), trailers()].concat();
    check(FIRST_FRAME, &bytes, FAILED);
    grpc(&[trailers()], FAILED);
    grpc(&[frame_of(RST_STREAM, 0, 1, &[0; 4])], FAILED);
    grpc(
        &[frame_of(DATA, END_STREAM, 1, &[0, 0, 0, 0, 2, 8, 1])],
        FAILED,
    );
}

#[test]
fn an_unusual_message_is_not_read() {
    for payload in [
        &[0, 0, 0, 0][..],
        &[0, 0, 0, 0, 2],
        &[0, 0, 0, 0, 2, 8],
        &[1, 0, 0, 0, 2, 8, 1],
        &[0, 0, 0, 0, 3, 8, 1, 0],
        &[0, 0, 0, 0, 2, 16, 1],
        &[0, 0, 0, 0, 2, 8, 129],
    ] {
        grpc(&[data(payload), trailers()], NOT_READ);
    }
    let padded = frame_of(DATA, PADDED, 1, &[1, 0, 0, 0, 0, 2, 8, 1, 0]);
    grpc(&[padded], NOT_READ);
}

#[test]
fn frames_of_other_streams_are_skipped() {
    let other = frame_of(DATA, END_STREAM, 3, &[0, 0, 0, 0, 2, 8, 2]);
    let unknown = frame_of(0xfe, 0xff, 1, &[9; 300]);
    let message = data(&[0, 0, 0, 0, 2, 8, 1]);
    grpc(&[other, unknown, message], Some(known(GRPC_STATUS, 1)));
}

#[test]
fn an_app_that_does_not_speak_http2_gives_an_invalid_answer() {
    let text = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    check(FIRST_FRAME, text, Some(known(INVALID, 0)));
    check(FIRST_FRAME, &data(&[0; 5]), Some(known(INVALID, 0)));
    grpc(
        &[[0, 0x40, 1, 9, 0, 0, 0, 0, 0].to_vec()],
        Some(known(INVALID, 0)),
    );
}

#[test]
fn a_segment_with_very_many_frames_is_not_read() {
    let ping = frame_of(6, 0, 0, &[0; 8]);
    let bytes = [frame_of(SETTINGS, 0, 0, &[]), ping.repeat(STEPS as usize)].concat();
    assert_eq!(read(FIRST_FRAME, &bytes, bytes.len()), NOT_READ);
    assert_eq!(read(FIRST_FRAME, &bytes, 30), None);
}

#[test]
fn retransmitted_bytes_are_read_once_and_a_gap_ends_the_reading() {
    let line: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n";
    let segment = |answer: &mut Answer, from: usize, to: usize| {
        let length = (to - from) as u32;
        answer.segment(&line, FIRST.wrapping_add(from as u32), from as u32, length)
    };
    let mut again = answer(STATUS_LINE);
    for (from, to) in [(0, 5), (0, 5), (2, 4), (0, 9)] {
        assert_eq!(segment(&mut again, from, to), None, "{from}..{to}");
    }
    let result = segment(&mut again, 7, line.len());
    assert_eq!(result, Some(known(HTTP_STATUS, 503)));

    let mut gap = answer(STATUS_LINE);
    assert_eq!(segment(&mut gap, 0, 5), None);
    assert_eq!(segment(&mut gap, 6, 20), NOT_READ);
}

#[test]
fn a_connection_without_an_answer_is_judged_only_if_all_its_bytes_were_seen() {
    for (received, by_kubelet, kind) in [
        (FIRST, true, GIVEN_UP),
        (FIRST, false, CLOSED),
        // With the app's FIN.
        (FIRST.wrapping_add(1), false, CLOSED),
        (FIRST.wrapping_add(30), false, UNREAD),
        (FIRST.wrapping_add(30), true, UNREAD),
        // The socket has not processed yet what was read.
        (FIRST.wrapping_sub(9), true, GIVEN_UP),
    ] {
        assert_eq!(
            ended(FIRST, received, by_kubelet),
            kind,
            "{received} {by_kubelet}"
        );
    }
}

#[test]
fn any_bytes_in_any_segments_are_read_without_a_panic() {
    // A linear congruential generator, so that no crate is needed here.
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..40).map(|_| (random() % 11) as u8).collect();
        let mut answer = answer(random() % 5);
        for _ in 0..8 {
            let (seq, at, length) = (random() % 50, random() % 50, random() % 50);
            let _known = answer.segment(&bytes.as_slice(), FIRST.wrapping_add(seq), at, length);
            assert!(answer.have < 20);
        }
    }
}
