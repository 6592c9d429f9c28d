//! Random input, as the fuzz targets get it.

#[path = "../../../fuzz/archives.rs"]
mod fuzz;

use proptest::prelude::*;

#[test]
fn the_entry_of_the_fuzz_target_reads_a_description() {
    let xml = b"<E><File id='f' href='d'/><Disk fileRef='f'/><VirtualSystem/></E>";
    assert_eq!(fuzz::ova(xml), 1);
}

proptest! {
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
