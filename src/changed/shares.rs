//! What the size of the newer image consists of.

use super::owners::is_owner;
use super::{Amount, Written};
use virt_bmap_map::lookup::{MapHit, tally};
use virt_bmap_map::{Kind, Map, Object, Piece};
use virt_bmap_ranges::{DiskNumber, IndexedRanges};

/// The bytes that take space in the newer image, by their present use. Each byte is counted once.
#[derive(Clone, Debug, Default)]
pub struct Shares<'a> {
    /// In files.
    pub files: Amount,
    /// After the ends of files, in their last blocks.
    pub tails: Amount,
    /// In directories, and in no file.
    pub directories: Amount,
    /// In metadata, and in no file or directory.
    pub metadata: Amount,
    /// Parity of files, and blocks that were allocated and never written.
    pub unused: Amount,
    /// On a volume, partition or disk, but in none of the above: free space, and metadata that is
    /// not in the map. The device with the most bytes first.
    pub free: Vec<(Object<'a>, Amount)>,
    /// In no object of the map.
    pub unmapped: Amount,
    /// Unchanged: rewritten with the same content, or filling up clusters that are larger than the
    /// write.
    pub same: u64,
    /// The sum of all the above.
    pub held: u64,
    /// In addition: bytes that were changed to zeroes and take no space in the image.
    pub zeroed: Amount,
}

impl<'a> Shares<'a> {
    /// Computes the shares; `in_files` are the bytes of files that differ or may differ.
    pub(super) fn of(map: &'a Map, disk: DiskNumber, written: &Written, in_files: &IndexedRanges) -> Self {
        let held = |spans: &IndexedRanges| spans.without(written.zeroes.iter());
        let rests = [held(&written.differs), held(&written.unknown)];
        let sizes = [0, 1].map(|which| rests[which].bytes());
        let zeroed =
            Amount { exact: written.differs.bytes() - sizes[0], unknown: written.unknown.bytes() - sizes[1] };
        let mut shares = Self { held: written.held.bytes(), zeroed, ..Self::default() };
        shares.same = shares.held.saturating_sub(sizes[0] + sizes[1]);
        let mut rests = Rests(rests);
        shares.files = rests.take(|rest| rest.without(in_files.iter()));
        let pieces = || map.pieces().filter(|piece| piece.disk == disk);
        let kind_of = |piece: &Piece| map.object(piece.object).kind();
        let mut take = |is_one: fn(Kind) -> bool| {
            let data = || pieces().filter(|piece| piece.role.holds_data() && is_one(kind_of(piece)));
            rests.take(|rest| rest.without(data().map(|piece| piece.range)))
        };
        shares.tails = take(|kind| kind == Kind::File);
        shares.directories = take(|kind| is_owner(kind) && kind != Kind::Metadata);
        shares.metadata = take(|kind| kind == Kind::Metadata);
        let owned = || pieces().filter(|piece| is_owner(kind_of(piece)));
        shares.unused = rests.take(|rest| rest.without(owned().map(|piece| piece.range)));
        let [exact, unknown] = rests.0.map(|rest| tally(map, disk, &rest).shares);
        let mut free: Vec<(Object<'a>, Amount)> = Vec::new();
        let exact = exact.iter().map(|share| (share.place, Amount { exact: share.bytes, unknown: 0 }));
        let unknown = unknown.iter().map(|share| (share.place, Amount { exact: 0, unknown: share.bytes }));
        for (place, amount) in exact.chain(unknown) {
            match place {
                // These bytes were counted above.
                MapHit::Object(_) => {}
                MapHit::Free(holder) => match free.iter_mut().find(|(known, _)| *known == holder) {
                    Some((_, sum)) => *sum += amount,
                    None => free.push((holder, amount)),
                },
                MapHit::Unmapped => shares.unmapped += amount,
            }
        }
        free.sort_by_key(|(_, amount)| std::cmp::Reverse(amount.most()));
        shares.free = free;
        shares
    }
}

/// The bytes not counted yet: those that differ, and those that could not be compared.
struct Rests([IndexedRanges; 2]);

impl Rests {
    /// Keeps the bytes that `without` leaves, and returns the number of those that it removed.
    fn take(&mut self, without: impl Fn(&IndexedRanges) -> IndexedRanges) -> Amount {
        let [exact, unknown] = [0, 1].map(|which| {
            let left = without(&self.0[which]);
            let taken = self.0[which].bytes() - left.bytes();
            self.0[which] = left;
            taken
        });
        Amount { exact, unknown }
    }
}
