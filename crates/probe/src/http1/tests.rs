//! Which bytes are a complete response, which are not, and what is read from it.

use proptest::prelude::*;

use super::*;

/// The result for a stream that ends after these pieces: status and Location.
fn read<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(u16, Option<String>), ResponseError> {
    let mut reader = ResponseReader::default();
    let mut done = false;
    for piece in pieces {
        if reader.feed(piece)? {
            done = true;
            break;
        }
    }
    if !done {
        reader.end()?;
    }
    let head = reader.into_head().ok_or(ResponseError::CutShort)?;
    let location = head
        .location
        .map(|location| String::from_utf8_lossy(&location).into_owned());
    Ok((head.status, location))
}

/// Asserts the result for the response as a whole, cut in two at every place, and byte by byte.
#[track_caller]
fn check(response: &str, expect: Result<u16, ResponseError>) {
    let bytes = response.as_bytes();
    let whole = read([bytes]).map(|(status, _)| status);
    assert_eq!(whole, expect, "{response:?}");
    for cut in 0..bytes.len() {
        let (one, two) = bytes.split_at(cut);
        let split = read([one, two]).map(|(status, _)| status);
        assert_eq!(split, expect, "{response:?} cut at {cut}");
    }
    let single = read(bytes.chunks(1)).map(|(status, _)| status);
    assert_eq!(single, expect, "{response:?} byte by byte");
}

#[track_caller]
fn malformed(response: &str) {
    let result = read([response.as_bytes()]);
    assert!(
        matches!(result, Err(ResponseError::Malformed(_))),
        "{response:?}: {result:?}"
    );
    let single = read(response.as_bytes().chunks(1));
    assert_eq!(single, result, "{response:?} byte by byte");
}

const CUT: Result<u16, ResponseError> = Err(ResponseError::CutShort);

#[test]
fn every_final_status_is_accepted() {
    for status in 200..=999 {
        check(
            &format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"),
            Ok(status),
        );
    }
    check("HTTP/1.1 101 Switching Protocols\r\n\r\n", Ok(101));
}

#[test]
fn status_lines_are_read_as_go_reads_them() {
    for line in [
        "HTTP/1.1 200 OK",
        "HTTP/1.1 200",
        "HTTP/1.1 200 ",
        "HTTP/1.1  200 OK",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 200 \u{fc}",
    ] {
        check(&format!("{line}\r\n\r\n"), Ok(200));
        check(&format!("{line}\n\n"), Ok(200));
    }
    for line in [
        "",
        "garbage",
        "HTTP/1.1",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 abc OK",
        "HTTP/1.1 099 Low",
        "HTTQ/1.1 200 OK",
        "SSH-2.0-OpenSSH_9.6",
        "<html>",
    ] {
        malformed(&format!("{line}\r\n\r\n"));
    }
}

#[test]
fn headers_are_read_as_go_reads_them() {
    for header in [
        "X: y",
        "X:",
        "X : y",
        "Cache Control: no-cache",
        "Content-Length : 7",
        "X: a\r\n b",
        "X:\tz",
        "x: \u{fc}",
    ] {
        check(
            &format!("HTTP/1.1 200 OK\r\n{header}\r\nContent-Length: 0\r\n\r\n"),
            Ok(200),
        );
    }
    for header in [
        "no colon",
        "X\u{fc}: y",
        "X: \0",
        ": y",
        "X(1): y",
        " X: y",
        "X\ty: z",
        "X: \u{7f}",
    ] {
        malformed(&format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n"));
    }
}

#[test]
fn trailers_are_read_as_go_reads_them() {
    let answer = |trailers: &str| {
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}\r\n\r\n")
    };
    let many = vec!["a:"; 600].join("\r\n");
    for trailers in [
        "X: y",
        "X: a\r\n b",
        "X: a\r\n\tb\r\nY:",
        "A b: c",
        "X : y",
        "X: \u{fc}",
        &many,
    ] {
        check(&answer(trailers), Ok(200));
    }
    let long = vec!["a:"; 1024].join("\r\n");
    for trailers in [
        "no colon",
        " X: y",
        ": y",
        "X(1): y",
        "X: \u{1}",
        "X\u{fc}: y",
        &long,
    ] {
        malformed(&answer(trailers));
    }
}

#[test]
fn the_body_ends_where_its_framing_says() {
    for (headers, body, expect) in [
        ("Content-Length: 3", "abc", Ok(200)),
        ("Content-Length: 3", "abcd", Ok(200)),
        ("Content-Length: 3", "ab", CUT),
        ("Content-Length: 3\r\nContent-Length: 3", "abc", Ok(200)),
        ("Content-Length: 3 ", "abc", Ok(200)),
        ("X: until-close", "abc", Ok(200)),
        (
            "Transfer-Encoding: chunked",
            "3\r\nabc\r\n0\r\n\r\n",
            Ok(200),
        ),
        ("Transfer-Encoding: CHUNKED", "0\r\n\r\n", Ok(200)),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 99",
            "0\r\n\r\n",
            Ok(200),
        ),
        (
            "Transfer-Encoding: chunked",
            "A;x=y\r\n0123456789\r\n0 \r\n\r\n",
            Ok(200),
        ),
        (
            "Transfer-Encoding: chunked",
            "0\r\nX: y\r\nZ: w\r\n\r\n",
            Ok(200),
        ),
        ("Transfer-Encoding: chunked", "", CUT),
        ("Transfer-Encoding: chunked", "3\r\nab", CUT),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n", CUT),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n", CUT),
        ("Transfer-Encoding: chunked", "0\r\nX: y\r\n", CUT),
    ] {
        check(
            &format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n{body}"),
            expect,
        );
    }
}

#[test]
fn bad_framing_is_malformed() {
    for (headers, body) in [
        ("Content-Length: -1", ""),
        ("Content-Length: +1", "a"),
        ("Content-Length: x", ""),
        ("Content-Length: 9223372036854775808", ""),
        ("Content-Length: 1\r\nContent-Length: 2", "ab"),
        ("Transfer-Encoding: gzip", ""),
        ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        ("Transfer-Encoding: chunked", "x\r\n"),
        ("Transfer-Encoding: chunked", "\r\n"),
        ("Transfer-Encoding: chunked", "3\nabc\r\n"),
        ("Transfer-Encoding: chunked", "5 ;x\r\nabcde\r\n"),
        ("Transfer-Encoding: chunked", "3\r\nabcd\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "11111111111111111\r\n"),
        ("Transfer-Encoding: chunked", "0\r\nno colon\r\n\r\n"),
    ] {
        malformed(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n{body}"));
    }
}

#[test]
fn http_1_0_has_no_transfer_coding() {
    check(
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nanything",
        Ok(200),
    );
    check(
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nabc",
        CUT,
    );
}

#[test]
fn some_statuses_have_no_body_whatever_the_headers() {
    for status in [204, 304] {
        for headers in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            check(
                &format!("HTTP/1.1 {status} X\r\n{headers}\r\n\r\n"),
                Ok(status),
            );
        }
    }
}

#[test]
fn interim_responses_are_skipped() {
    check(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
         HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n",
        Ok(503),
    );
    check("HTTP/1.1 100 Continue\r\n\r\n", CUT);
}

#[test]
fn a_stream_that_ends_before_the_head_does_is_cut_short() {
    for response in ["", "H", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nX: y\r\n"] {
        check(response, CUT);
    }
}

#[test]
fn heads_are_limited_in_size_and_in_number_of_headers() {
    let head = |length: usize| {
        let frame = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: \r\n\r\n".len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: {}\r\n\r\n",
            "x".repeat(length - frame)
        )
    };
    let read_all = |text: &str| read(text.as_bytes().chunks(1000)).map(|(status, _)| status);
    assert_eq!(read_all(&head(HEAD_LIMIT)), Ok(200));
    let large = Err(ResponseError::HeadTooLarge);
    assert_eq!(read_all(&head(HEAD_LIMIT + 1)), large);
    assert_eq!(
        read([head(HEAD_LIMIT + 1).as_bytes()]).map(|(s, _)| s),
        large
    );

    let many = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert_eq!(read_all(&many(HEADERS_LIMIT)), Ok(200));
    assert_eq!(read_all(&many(HEADERS_LIMIT + 1)), large);

    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(HEAD_LIMIT / 25 + 1);
    assert_eq!(read_all(&interim), large);
}

#[test]
fn no_more_of_the_body_is_read_than_the_kubelet_reads() {
    let body = "b".repeat(BODY_LIMIT);
    for head in [
        "Content-Length: 999999999".to_owned(),
        "X: until-close".to_owned(),
    ] {
        let mut reader = ResponseReader::default();
        let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
        assert_eq!(reader.feed(head.as_bytes()), Ok(false));
        assert_eq!(reader.feed(&body.as_bytes()[1..]), Ok(false), "{head}");
        assert_eq!(reader.feed(b"b"), Ok(true), "{head}");
    }
    check(
        &format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2800\r\n{}",
            "b".repeat(4)
        ),
        CUT,
    );
    assert_eq!(
        read([
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2800\r\n{body}")
                .as_bytes()
        ])
        .map(|(status, _)| status),
        Ok(200)
    );
}

#[test]
fn endless_framing_is_rejected() {
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(4000));
    malformed(&format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        chunk.repeat(10)
    ));
    malformed(&format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
        "x".repeat(5000)
    ));
    malformed(&format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: {}",
        "x".repeat(5000)
    ));
}

#[test]
fn the_first_location_counts_and_an_empty_one_does_not() {
    let location = |headers: &str| {
        let response = format!("HTTP/1.1 302 Found\r\n{headers}\r\nContent-Length: 0\r\n\r\n");
        read([response.as_bytes()]).expect("a response").1
    };
    assert_eq!(
        location("Location: /a\r\nlocation: /b").as_deref(),
        Some("/a")
    );
    assert_eq!(location("Location:  "), None);
    assert_eq!(location("X: y"), None);
}

/// Fragments of responses, and random bytes.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.0 503 No\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Location: /x\r\n",
            "\r\n",
            "\n",
            "3\r\nabc\r\n",
            "0\r\n\r\n",
            "hello",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..8),
    ]
}

proptest! {
    #[test]
    fn how_the_input_is_split_makes_no_difference(
        fragments in prop::collection::vec(fragment(), 0..12),
        cuts in prop::collection::vec(1_usize..7, 1..20),
    ) {
        let bytes = fragments.concat();
        let whole = read([bytes.as_slice()]);
        let mut pieces = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        prop_assert_eq!(read(pieces), whole);
    }
}
