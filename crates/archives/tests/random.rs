//! Random input, as the fuzz targets get it.

#[path = "../../../fuzz/archives.rs"]
mod fuzz;

use proptest::prelude::*;
use virt_bmap_archives::ewf::Ewf;

#[test]
fn the_entry_of_the_fuzz_target_reads_a_description() {
    let xml = b"<E><File id='f' href='d'/><Disk fileRef='f'/><VirtualSystem/></E>";
    assert_eq!(fuzz::ova(xml), 1);
}

#[test]
fn the_entry_of_the_fuzz_target_reads_an_image() {
    assert_eq!(fuzz::ewf(&fuzz::small_ewf()), 1024);
    let image = Ewf::open(vec![fuzz::sound_sections(&fuzz::small_ewf())]).unwrap();
    assert_eq!(image.about().unread_sectors, 8);
    let mut bytes = [0; 1024];
    image.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [7; 1024]);
}

proptest! {
    #[test]
    fn no_image_makes_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..16),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = fuzz::small_ewf();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz::ewf(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        fuzz::ewf(&bytes);
    }

    /// Numbers in the places where the structures have some.
    #[test]
    fn no_numbers_make_it_panic(
        changes in prop::collection::vec(
            (prop::sample::select(vec![16, 24, 76, 80, 84, 88, 92, 1144, 1152, 2248, 2256, 2308, 2316, 2332]),
             prop::sample::select(vec![0, 1, 2, 0x7fff_ffff, 0x8000_0001, u64::MAX, 1 << 40, 13, 89, 1217, 2245])),
            1..5),
    ) {
        let mut bytes = fuzz::small_ewf();
        for (at, value) in changes {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        fuzz::ewf(&bytes);
    }

    #[test]
    fn no_description_makes_it_panic(
        parts in prop::collection::vec(prop::sample::select(vec![
            "<File", "<Disk", "</Disk>", "<VirtualSystem>", " id='f'", " href='d'", " fileRef='f'", "/>",
            ">", "&lt;", "&#x0;", "<!--", "-->", "<![CDATA[", "]]>", "<!DOCTYPE a [", "\u{0}", "ü", " xmlns:a='b'",
            " a:compression='gzip'",
        ]), 0..40),
    ) {
        fuzz::ova(parts.concat().as_bytes());
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..4096), at in 0usize..4) {
        if let Some(byte) = bytes.get_mut(at * 512 + 257) {
            *byte = b'u';
        }
        fuzz::ova(&bytes);
    }
}
