//! The blocks of thin volumes, by the metadata that `thin_restore` writes.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use virt_bmap_on_disk::thin::{Pool, Run};
use virt_bmap_testutil::tools::{self, needs};

/// Runs of blocks that lie in the pool in no order, so that the tree has several levels.
fn runs(seed: u64, count: u64) -> Vec<Run> {
    let run = |number: u64| {
        let length = number * seed % 7 + 1;
        // A gap after each, and another order in the pool.
        Run { first: number * 9, at: number * 7919 % count * 8, count: length }
    };
    (0..count).map(run).collect()
}

#[test]
fn blocks_are_where_thin_restore_puts_them() {
    needs!("thin_restore");
    let dir = tempfile::tempdir().unwrap();
    let devices = [(1, runs(3, 20_000)), (4, Vec::new()), (77, runs(5, 3))];
    let mut xml = String::from(
        r#"<superblock uuid="" time="1" transaction="2" data_block_size="256" nr_data_blocks="200000">"#,
    );
    for (id, runs) in &devices {
        let blocks: u64 = runs.iter().map(|run| run.count).sum();
        write!(xml, r#"<device dev_id="{id}" mapped_blocks="{blocks}" transaction="1" creation_time="0" snap_time="0">"#)
            .unwrap();
        for Run { first, at, count } in runs {
            write!(
                xml,
                r#"<range_mapping origin_begin="{first}" data_begin="{at}" length="{count}" time="1"/>"#
            )
            .unwrap();
        }
        xml += "</device>";
    }
    xml += "</superblock>";
    let [from, to] = ["metadata.xml", "metadata"].map(|name| dir.path().join(name));
    fs::write(&from, xml).unwrap();
    let metadata = File::create_new(&to).unwrap();
    metadata.set_len(16 << 20).unwrap();
    tools::run("thin_restore", ["-i".as_ref(), from.as_path(), "-o".as_ref(), &to]);

    let metadata = File::open(&to).unwrap();
    let read = |at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        metadata.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    };
    let pool = Pool::of(&read).unwrap();
    assert_eq!(pool.block, 128 << 10);
    for (id, runs) in devices {
        assert_eq!(pool.blocks(&read, id), Some(runs), "device {id}");
    }
    assert_eq!(pool.blocks(&read, 2), None);
}
