//! Compares the time of random writes of 4 KiB to an overlay with that to a disk with a history:
//! `cargo run --release -p virt-bmap-history --example write_cost`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virt_bmap_history::{Bases, History, HistoryOptions};
use virt_bmap_image::{Overlay, Source, Writable};
use virt_bmap_ranges::DiskOffset;

const DISK: u64 = 1 << 30;
const WRITES: u64 = 50_000;
const BLOCK: u64 = 4096;

struct Zeroes;

impl Source for Zeroes {
    fn size(&self) -> u64 {
        DISK
    }

    fn read_at(&self, buf: &mut [u8], _offset: DiskOffset) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

/// Time of writes to random blocks among the first `blocks`, with a flush after each 64.
fn time(disk: &dyn Writable, blocks: u64) -> io::Result<Duration> {
    let mut random = 1_u64;
    let data = [7; BLOCK as usize];
    let began = Instant::now();
    for number in 0..WRITES {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        disk.write_at(&data, DiskOffset((random >> 33) % blocks * BLOCK))?;
        if number % 64 == 63 {
            disk.flush()?;
        }
    }
    Ok(began.elapsed())
}

fn main() -> io::Result<()> {
    for (name, blocks) in [("1 GiB", DISK / BLOCK), ("32 MiB", (32 << 20) / BLOCK)] {
        let mut fastest = [Duration::MAX; 3];
        for _ in 0..5 {
            let overlay = Overlay::new(Arc::new(Zeroes), DISK, &std::env::temp_dir())?;
            fastest[0] = fastest[0].min(time(&overlay, blocks)?);
            let history = History::start(Bases::Private(vec![Arc::new(Zeroes)]), HistoryOptions::default())?;
            fastest[1] = fastest[1].min(time(&*history.disks()[0], blocks)?);
            // States are taken meanwhile.
            let history = History::start(Bases::Private(vec![Arc::new(Zeroes)]), HistoryOptions::default())?;
            let disk = &history.disks()[0];
            let taken = std::thread::scope(|scope| {
                let writer = scope.spawn(|| time(&**disk, blocks));
                while !writer.is_finished() {
                    if history.next().is_none() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                writer.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            })?;
            fastest[2] = fastest[2].min(taken);
        }
        for (what, time) in ["overlay", "history", "history, states taken"].iter().zip(fastest) {
            let nanoseconds = time.as_nanos() / u128::from(WRITES);
            println!(
                "random 4 KiB in {name}, {what}: {nanoseconds} ns a write, {:.2} of the overlay",
                time.as_secs_f64() / fastest[0].as_secs_f64()
            );
        }
    }
    Ok(())
}
