//! Spot checks of extents, and files that are not where their extents say.

use super::*;
use std::num::NonZeroU32;
use virt_bmap_image::Overlay;

#[test]
fn extents_whose_spot_checks_succeed_are_accepted() {
    let mut agent = Agent::sampling(1);
    agent.find(&[(2, 65536), (3, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(65536, 69632), (126_976, 131_072)]), (3, &[(262_144, 266_240), (323_584, 327_680)])];
    assert!(agent.read_series(&ends).is_empty());
    agent.say(&[Record::Done]).unwrap();
    agent.channel.end().unwrap();
    assert!(agent.channel.with(|_, warnings| warnings.list().is_empty()));
    assert_eq!(agent.lines(), "1 10000 20000 f /dev/sda /file2\n1 40000 50000 f /dev/sda /file3\n");
}

#[test]
fn a_file_that_is_not_where_its_extents_say_is_read_in_full() {
    let mut agent = Agent::sampling(1);
    agent.find(&[(2, 65536), (3, 262_144)]);
    // The second begins where it should, but ends elsewhere.
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(65536, 69632), (126_976, 131_072)]), (3, &[(262_144, 266_240), (4096, 8192)])];
    // Either may have been read there.
    assert_eq!(agent.read_series(&ends), [2, 3]);
    agent.tag(2, true);
    agent.read(65536, 131_072);
    agent.tag(3, true);
    agent.read(262_144, 299_008);
    agent.read(4096, 32768);
    agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd, Record::Done]).unwrap();
    agent.channel.end().unwrap();
    assert_eq!(agent.channel.with(|_, warnings| warnings.list().len()), 1);
    let lines =
        "1 1000 8000 f /dev/sda /file3\n1 10000 20000 f /dev/sda /file2\n1 40000 49000 f /dev/sda /file3\n";
    assert_eq!(agent.lines(), lines);
}

#[test]
fn files_without_a_spot_check_are_accepted_until_a_mismatch() {
    // A sample that has two of these files, whose inodes have their numbers.
    let one_in = NonZeroU32::new(4).unwrap();
    let is_chosen =
        |sample: &Sample| (2..9).all(|inode| sample.has(inode, &[], 0) == [4, 8].contains(&inode));
    let sample = (0..).map(|seed| Sample { one_in, seed }).find(is_chosen);
    let mut agent = Agent::walking_with(sample);
    agent.find(&[(2, 65536), (3, 131_072), (4, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 1] = [(4, &[(262_144, 266_240), (323_584, 327_680)])];
    assert!(agent.read_series(&ends).is_empty());
    agent.find(&[(5, 0), (6, 0), (7, 0), (8, 524_288)]);
    assert_eq!(agent.read_series(&[(8, &[(4096, 8192), (12288, 16384)])]), [8]);
    agent.tag(8, true);
    agent.read(4096, 65536 + 4096);
    // The agent gets the error as soon as the mismatch is known.
    assert!(agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]).is_err());
    assert!(matches!(agent.channel.end(), Err(ChannelError::ExtentMismatch)));
    agent.channel.forget_walk();
    assert!(agent.channel.with(|_, warnings| warnings.list().is_empty()));
    assert_eq!(agent.lines(), "");
}

#[test]
fn a_file_of_which_an_end_was_not_read_is_read_in_full() {
    let mut agent = Agent::sampling(1);
    agent.find(&[(2, 65536), (3, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(126_976, 131_072)]), (3, &[(323_584, 327_680), (262_144, 266_240)])];
    assert_eq!(agent.read_series(&ends), [2]);
}

#[test]
fn three_mismatches_are_allowed_if_each_file_is_checked() {
    let mut agent = Agent::sampling(1);
    for id in 2..6 {
        agent.find(&[(id, 65536)]);
        assert_eq!(agent.read_series(&[(id, &[(0, 8192)])]), [id]);
        agent.tag(id, true);
        agent.read(0, 65536);
        let result = agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]);
        assert_eq!(result.is_ok(), id < 5, "{id}");
    }
    assert!(matches!(agent.channel.end(), Err(ChannelError::ExtentMismatch)));
}

#[test]
fn a_contradiction_ends_the_walk_and_names_the_file() {
    let mut agent = Agent::sampling(32);
    agent.find(&[(2, 65536)]);
    let contradiction = Record::Contradiction { parent: 1, name: b"file2".to_vec() };
    assert!(agent.say(&[contradiction, Record::BatchEnd]).is_err());
    let Err(ChannelError::Contradiction(path)) = agent.channel.end() else { panic!("no contradiction") };
    assert_eq!(path, b"/file2");
}

#[test]
fn a_stray_read_only_makes_the_file_be_read_in_full() {
    let mut agent = Agent::sampling(1);
    for id in 2..20 {
        agent.find(&[(id, 65536)]);
        let with_a_stray: [(u32, &[(u64, u64)]); 1] =
            [(id, &[(65536, 69632), (524_288, 528_384), (126_976, 131_072)])];
        assert_eq!(agent.read_series(&with_a_stray), [id]);
        agent.tag(id, true);
        agent.read(65536, 131_072);
        agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]).unwrap();
    }
    agent.say(&[Record::Done]).unwrap();
    agent.channel.end().unwrap();
    assert_eq!(agent.lines().lines().filter(|line| line.starts_with("1 10000 20000 f")).count(), 18);
}

#[test]
fn files_in_written_places_are_read_in_full() {
    use virt_bmap_image::{ImageFormat, OpenOptions, open};
    use virt_bmap_ranges::DiskOffset;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() };
    let base = open(&file.path().to_owned().into(), &options).unwrap().source;
    let overlay = Arc::new(Overlay::new(base, 1 << 20, &std::env::temp_dir()).unwrap());
    overlay.write_at(&[1; 512], DiskOffset(65536 + 8192)).unwrap();
    let sample = Some(Sample::ALL);
    let mut agent =
        Agent::walking_in(WalkContext { sample, overlays: vec![overlay], ..WalkContext::default() });
    agent.find(&[(2, 65536), (3, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(65536, 69632), (126_976, 131_072)]), (3, &[(262_144, 266_240), (323_584, 327_680)])];
    assert_eq!(agent.read_series(&ends), [2]);
}
