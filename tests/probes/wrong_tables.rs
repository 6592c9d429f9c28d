//! Tables of inodes that are read wrongly. The image is on a server that gives the agent, which
//! reads tables in large pieces, other inodes than the kernel, which reads blocks. That is what a
//! fault of the agent's parser would look like.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use virt_bmap_agent_protocol::Sample;
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_nbd::{Export, Exports, Limits, Server};
use virt_bmap_testutil::sandbox;
use virt_bmap_testutil::textmap::body;
use virt_bmap_testutil::tools::{self, needs};

/// Bytes that the agent reads of a table at a time.
const PIECE: usize = 64 << 10;

/// Where an inode has its extents, and how many bytes they take.
const EXTENTS: u64 = 0x28;
const EXTENTS_LENGTH: usize = 60;

/// Where the first extent has its block, in there.
const FIRST_BLOCK: usize = 12 + 8;

/// The inode of a file, as the agent gets it.
struct Wrong {
    at: u64,
    extents: Vec<u8>,
}

/// An image, and what is wrong with it.
struct LyingDisk {
    image: File,
    wrong: Vec<Wrong>,
}

impl Export for LyingDisk {
    fn size(&self) -> u64 {
        self.image.metadata().unwrap().len()
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.image.read_exact_at(buf, offset)?;
        if buf.len() == PIECE {
            for Wrong { at, extents } in &self.wrong {
                let start = at.checked_sub(offset).map(|start| start as usize);
                let place = start.and_then(|start| buf.get_mut(start..start + extents.len()));
                place.into_iter().for_each(|place| place.copy_from_slice(extents));
            }
        }
        Ok(())
    }
}

/// A filesystem whose inodes have no checksums: these would tell.
struct Guest {
    dir: tempfile::TempDir,
    image: PathBuf,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for number in 0..60 {
            fs::write(tree.join(format!("file{number}")), vec![number; 8192]).unwrap();
        }
        let image = dir.path().join("disk.raw");
        let options = ["-q", "-t", "ext4", "-O", "^metadata_csum", "-b", "4096", "-N", "2048", "-d"];
        let mut command = tools::command("mke2fs");
        tools::output(command.args(options).args([&tree, &image]).arg("32M"));
        Self { dir, image }
    }

    fn debugfs(&self, request: &str) -> String {
        let output = tools::run("debugfs", ["-R", request, self.image.to_str().unwrap()]);
        String::from_utf8(output).unwrap()
    }

    /// The number of a file's inode, where its extents are, and their bytes.
    fn file(&self, name: &str) -> (u64, Wrong) {
        let said = self.debugfs(&format!("imap /{name}"));
        let number = |after: &str| {
            let word = said.split_once(after).unwrap().1.split([' ', ',', '\n']).next().unwrap();
            let hex = word.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16).unwrap());
            hex.unwrap_or_else(|| word.parse().unwrap())
        };
        let at = number("located at block ") * 4096 + number("offset ") + EXTENTS;
        let mut extents = vec![0; EXTENTS_LENGTH];
        File::open(&self.image).unwrap().read_exact_at(&mut extents, at).unwrap();
        (number("Inode "), Wrong { at, extents })
    }

    /// The map of the image itself.
    fn right(&self) -> Vec<u8> {
        let run =
            sandbox::run([self.image.as_os_str(), "--proof=every".as_ref(), "-o".as_ref(), "x".as_ref()]);
        run.assert_code(0);
        body(&run.read("x")).to_vec()
    }

    /// The map of what the server says.
    fn map(&self, wrong: Vec<Wrong>, seed: u64) -> Vec<u8> {
        let disk = LyingDisk { image: File::open(&self.image).unwrap(), wrong };
        let socket = self.dir.path().join(format!("socket-{seed}"));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = serve(&socket, disk, stopped);
        let address = format!("nbd+unix:///disk?socket={}", socket.display());
        let run = sandbox::run([&address, "--proof-seed", &seed.to_string(), "-o", "x"]);
        drop(stop);
        server.join().unwrap();
        fs::remove_file(socket).unwrap();
        run.assert_code(0);
        body(&run.read("x")).to_vec()
    }
}

fn serve(socket: &Path, disk: LyingDisk, stopped: oneshot::Receiver<()>) -> thread::JoinHandle<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(async { UnixListener::bind(socket) }).unwrap();
    thread::spawn(move || {
        let exports = Exports::new().with("disk", Arc::new(disk)).unwrap();
        let stop = async {
            stopped.await.ok();
        };
        runtime.block_on(Server::new(exports, Limits::default()).run(listener, stop));
    })
}

/// A seed with which these files are in the sample, or none of them is.
fn seed(files: &[u64], is_sampled: bool) -> u64 {
    let one = [Extent { logical: 0, physical: 1 << 20, length: 8192, flags: 0 }];
    let sample = |seed| Sample { one_in: 32.try_into().unwrap(), seed };
    let suits = |seed: &u64| files.iter().all(|file| sample(*seed).has(*file, &one, 8192) == is_sampled);
    (1..).find(suits).unwrap()
}

#[test]
fn files_that_are_taken_for_each_other_are_found_if_one_is_in_the_sample() {
    needs!("mke2fs", "debugfs");
    let guest = Guest::new();
    let right = guest.right();
    let swapped = || {
        let [(a, mut first), (b, mut second)] = ["file7", "file40"].map(|name| guest.file(name));
        std::mem::swap(&mut first.extents, &mut second.extents);
        ([a, b], vec![first, second])
    };
    let ([a, b], wrong) = swapped();
    assert!(guest.map(wrong, seed(&[a], true)) == right, "the fault was not found");
    // Where neither is, nothing tells: the balance is even. docs/decisions/0025 says how likely.
    let (_, wrong) = swapped();
    assert!(guest.map(wrong, seed(&[a, b], false)) != right, "the server tells the truth");
}

#[test]
fn a_file_with_the_blocks_of_another_or_of_nobody_is_found_in_any_sample() {
    needs!("mke2fs", "debugfs");
    let guest = Guest::new();
    let right = guest.right();
    let free: u64 = {
        let said = guest.debugfs("ffb 2 4000");
        said.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
    };
    // One block further, which is the next file's; and the blocks that a deleted file had.
    let shifted = |block: u32| block + 1;
    let stale = |_: u32| free as u32;
    for move_to in [&shifted as &dyn Fn(u32) -> u32, &stale] {
        let (number, mut wrong) = guest.file("file20");
        let at = FIRST_BLOCK..FIRST_BLOCK + 4;
        let block = u32::from_le_bytes(wrong.extents[at.clone()].try_into().unwrap());
        wrong.extents[at].copy_from_slice(&move_to(block).to_le_bytes());
        assert!(guest.map(vec![wrong], seed(&[number], false)) == right, "the fault was not found");
    }
}
