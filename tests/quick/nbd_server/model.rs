//! Random requests. The answers are compared with a model, which consists of a vector of bytes and
//! the rules of the specification.

use super::memory::{Kind, Memory};
use super::peer::{Chunk, Peer, header};
use bytes::Buf;
use proptest::prelude::*;
use virt_bmap_nbd::Limits;
use virt_bmap_nbd::protocol::*;

const SIZE: usize = 40_000;

/// What the server must answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Data(Vec<u8>),
    Error(u32),
}

fn request() -> impl Strategy<Value = RequestHeader> {
    let offset = prop_oneof![
        8 => 0..SIZE as u64,
        1 => SIZE as u64 - 3..SIZE as u64 + 3,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![8 => 1..9000u32, 2 => 0..2u32];
    let flags = prop_oneof![6 => Just(0u16), 2 => Just(1u16), 2 => 0..33u16];
    let command = prop::sample::select(&[0u16, 1, 3, 4, 5, 6, 7, 8][..]);
    (command, flags, offset, length).prop_map(|(command, flags, offset, length)| {
        let flush = command == NBD_CMD_FLUSH && length % 8 != 0;
        let (offset, length) = if flush { (0, 0) } else { (offset, length) };
        RequestHeader { flags, ..header(command, 0, offset, length) }
    })
}

/// Carries out the request on the model, and returns the answer that the server must give.
fn expected(model: &mut [u8], request: &RequestHeader, data: &[u8], structured: bool) -> Answer {
    let &RequestHeader { flags, command, offset, length, .. } = request;
    let allowed = match command {
        NBD_CMD_READ if structured => 1 | 4,
        NBD_CMD_WRITE_ZEROES => 1 | 2 | 16,
        NBD_CMD_BLOCK_STATUS if structured => 1 | 8,
        NBD_CMD_READ | NBD_CMD_WRITE | NBD_CMD_FLUSH | NBD_CMD_TRIM => 1,
        _ => return Answer::Error(NBD_EINVAL),
    };
    if flags & !allowed != 0 {
        return Answer::Error(NBD_EINVAL);
    }
    if command == NBD_CMD_FLUSH {
        return if (offset, length) == (0, 0) { Answer::Done } else { Answer::Error(NBD_EINVAL) };
    }
    if length == 0 {
        return Answer::Error(NBD_EINVAL);
    }
    if u128::from(offset) + u128::from(length) > model.len() as u128 {
        let writes = matches!(command, NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES);
        return Answer::Error(if writes { NBD_ENOSPC } else { NBD_EINVAL });
    }
    let range = &mut model[offset as usize..][..length as usize];
    match command {
        NBD_CMD_READ | NBD_CMD_BLOCK_STATUS => Answer::Data(range.to_vec()),
        NBD_CMD_WRITE_ZEROES if flags & 18 == 18 => Answer::Error(NBD_ENOTSUP),
        NBD_CMD_WRITE => {
            range.copy_from_slice(data);
            Answer::Done
        }
        _ => {
            range.fill(0);
            Answer::Done
        }
    }
}

/// The answer to a request, from a structured reply.
fn structured_answer(request: &RequestHeader, chunk: &Chunk) -> Answer {
    assert_eq!(chunk.cookie, request.cookie);
    let mut data = &chunk.data[..];
    match chunk.kind {
        NBD_REPLY_TYPE_NONE => Answer::Done,
        NBD_REPLY_TYPE_ERROR => Answer::Error(data.get_u32()),
        NBD_REPLY_TYPE_OFFSET_DATA => {
            assert_eq!(data.get_u64(), request.offset);
            Answer::Data(data.to_vec())
        }
        NBD_REPLY_TYPE_OFFSET_HOLE => {
            assert_eq!(data.get_u64(), request.offset);
            Answer::Data(vec![0; data.get_u32() as usize])
        }
        other => panic!("{other}"),
    }
}

/// Checks that extents lie within the request, and that extents with flags are zero.
fn check_extents(request: &RequestHeader, chunk: &Chunk, truth: &[u8]) {
    let mut data = &chunk.data[..];
    assert_eq!(data.get_u32(), 1);
    assert!(!data.is_empty() && data.len().is_multiple_of(8));
    assert!(request.flags & 8 == 0 || data.len() == 8, "one was asked for");
    let mut rest = truth;
    while !data.is_empty() {
        let (length, flags) = (data.get_u32() as usize, data.get_u32());
        assert!(length > 0);
        let extent = rest.split_off(..length).expect("more than was asked for");
        assert!(flags == 0 || extent.iter().all(|&byte| byte == 0));
    }
}

async fn run(kind: Kind, structured: bool, pipelined: bool, requests: Vec<RequestHeader>) {
    let mut model: Vec<u8> = (0..SIZE).map(|at| (at % 255) as u8).collect();
    let memory = Memory::new(model.clone(), kind);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), structured).await;
    let mut waiting = Vec::new();
    let count = requests.len();
    for (cookie, mut request) in requests.into_iter().enumerate() {
        request.cookie = cookie as u64;
        let data =
            vec![cookie as u8; if request.command == NBD_CMD_WRITE { request.length as usize } else { 0 }];
        let answer = expected(&mut model, &request, &data, structured);
        peer.request(request, &data).await;
        waiting.push((request, answer));
        // The stream in memory holds this many requests.
        if pipelined && waiting.len() < 5 && cookie + 1 < count {
            continue;
        }
        for (request, answer) in waiting.drain(..) {
            if structured {
                let chunk = peer.chunk().await;
                match &answer {
                    Answer::Data(truth) if request.command == NBD_CMD_BLOCK_STATUS => {
                        assert_eq!(chunk.kind, NBD_REPLY_TYPE_BLOCK_STATUS);
                        check_extents(&request, &chunk, truth);
                    }
                    _ => assert_eq!(structured_answer(&request, &chunk), answer, "{request:?}"),
                }
            } else {
                let (error, cookie) = peer.simple_reply().await;
                assert_eq!(cookie, request.cookie);
                let got = match (error, request.command) {
                    (0, NBD_CMD_READ) => {
                        let mut data = vec![0; request.length as usize];
                        tokio::io::AsyncReadExt::read_exact(&mut peer.stream, &mut data).await.unwrap();
                        Answer::Data(data)
                    }
                    (0, _) => Answer::Done,
                    (error, _) => Answer::Error(error),
                };
                assert_eq!(got, answer, "{request:?}");
            }
        }
    }
    assert!(memory.bytes() == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// There is one request at a time, for each kind of export.
    #[test]
    fn every_answer_is_the_model_s(
        kind in prop::sample::select(&Kind::ALL[..]),
        structured: bool,
        requests in prop::collection::vec(request(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(kind, structured, false, requests));
    }

    /// Several requests are in flight. They are answered in order, since all are answered inline.
    #[test]
    fn requests_in_flight_do_not_disturb_each_other(
        structured: bool,
        requests in prop::collection::vec(request(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(Kind::FAST, structured, true, requests));
    }
}
