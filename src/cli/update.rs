//! `virt-bmap-rs update`: makes a map again if its guest has changed.

use super::Exit;
use super::answer::AnswerFormat;
use super::diff::{self, Sort, print_changes};
use super::make::with_formats;
use super::map::{MapOptions, map_to, refuse_to_overwrite, summarise};
use super::progress::ProgressMode;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use virt_bmap::mapper::GuestDisk;
use virt_bmap::probe::baseline::Baseline;
use virt_bmap::update::{Since, reason};
use virt_bmap_image::{self, Image, ImageFormat, OpenOptions};
use virt_bmap_map::{self as bmap, FileType, Format as MapFormat, Header, Map};
use virt_bmap_ranges::{DiskNumber, Human, IndexedRanges};

/// Make a map again if its guest has changed, and tell what differs.
///
/// The map names its images. If none of them, nor of the files below them, is newer than the map's file, or of
/// another size or format, nothing is done. Otherwise the guest is gone through again; of a map as JSON Lines only
/// those files are read that are not as they were, of a text map all. The new map takes the place of the old one, and is
/// the one that is made from scratch. Options that are not told by the map (--probe guestfsd, --legs, --key) have to be
/// given as when it was made; --metadata is told by it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct UpdateArgs {
    /// The map, in a file
    map: PathBuf,

    /// Where the guest's disk is now, if not where the map says; for several disks once for each, in order
    #[arg(long, value_name = "IMAGE")]
    image: Vec<PathBuf>,

    /// Format of the images: raw, qcow2, vmdk, …
    ///
    /// By default it is found out, as when a guest is mapped, and must be the one that the map says. Given once,
    /// it holds for all images; given several times, for one after the other.
    #[arg(long, value_name = "FORMAT")]
    image_format: Vec<ImageFormat>,

    /// Who knows what was written since the map was made: bitmap:NAME, snapshot:NAME or image:PATH
    ///
    /// A dirty bitmap of the qcow2 image, a snapshot inside of it, or the disk as it was, in a file; from the time on at
    /// which the map was made, or from before. If nothing was written, nothing has changed, whatever the time of the
    /// image says. Otherwise files that lie where something was written are read again, whatever their times say. Given
    /// once, it holds for all images; given several times, for one after the other.
    #[arg(long, value_name = "WHAT")]
    since: Vec<Since>,

    /// Map again even if nothing seems to have changed, and read everything
    #[arg(long)]
    again: bool,

    /// Write the map here, changed or not, and leave the old one
    ///
    /// The suffix tells the format, as when an image is mapped.
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,

    #[command(flatten)]
    form: AnswerFormat,

    #[command(flatten, next_help_heading = "Options for making a map")]
    mapping: MapOptions,
}

const AFTER_HELP: &str = "\
Exit status:
  0    nothing has changed, or everything was examined again
  1    failed, and the old map is as it was
  2    usage error
  3    a map was written, but something could not be examined; standard error
       and the map's first lines say what
  130  interrupted (143: terminated), and the old map is as it was

Examples:
  virt-bmap-rs update guest.bmap
  virt-bmap-rs update guest.jsonl.zst --image /new/place/guest.qcow2 --csv";

pub(super) fn run(args: &UpdateArgs) -> Result<Exit> {
    let old_file = args.map.as_path();
    if old_file == Path::new("-") {
        bail!("the map has to be in a file, whose time tells how old it is");
    }
    let out = args.output.as_deref().unwrap_or(old_file);
    if out == Path::new("-") {
        bail!("what has changed goes to standard output; name a file with -o");
    }
    let old = bmap::load(old_file)?;
    let images = named_images(&old, args)?;
    if args.output.is_none() {
        refuse_lossy(&old, out)?;
    }
    let mut options = args.mapping.clone();
    let had_metadata = old.lists_metadata();
    options.metadata |= had_metadata;
    if let Some(exit) = options.contradiction() {
        return Ok(exit);
    }
    options.start_log();
    let disks = with_formats(&images, &args.image_format)?;
    refuse_to_overwrite(&disks, &[out.to_owned()])?;
    // Closed again before the guest is mapped, by whom they are opened and locked.
    let (why, written) = {
        let images = open(&disks, old.header(), options.force_share)?;
        let written = written(&images, &args.since, options.force_share)?;
        (why(&old, old_file, &images, written.as_ref()), written.unwrap_or_default())
    };
    let why = why
        .or_else(|| args.again.then(|| "--again was given".to_owned()))
        .or_else(|| (options.metadata && !had_metadata).then(|| "the map has no metadata".to_owned()));
    let Some(why) = why else {
        if args.output.is_some() {
            bmap::save(&old, out)?;
        }
        if args.form.is_text() {
            args.form.print(|out| writeln!(out, "unchanged"))?;
        } else {
            print_changes(args.form, &[])?;
        }
        return Ok(Exit::Success);
    };
    if !options.quiet && options.progress != ProgressMode::Json {
        note!("mapping again: {why}");
    }
    let old = Arc::new(old);
    if !args.again {
        options.baseline = Baseline::new(old.clone(), written).map(Arc::new);
    }
    let outs = [out.to_owned()];
    let mapped = match map_to(&disks, &outs, &options)? {
        Ok(mapped) => mapped,
        Err(exit) => return Ok(exit),
    };
    let exit = summarise(&mapped, &outs, &options);
    drop(options);
    diff::print(args.form, Sort::Bytes, Arc::unwrap_or_clone(old), mapped.map)?;
    Ok(exit)
}

/// Why the map has to be made again, as far as its images tell.
fn why(
    old: &Map,
    old_file: &Path,
    images: &[Image],
    written: Option<&BTreeMap<DiskNumber, IndexedRanges>>,
) -> Option<String> {
    let reason = reason(old, old_file, images);
    let Some(written) = written else { return reason.map(|reason| reason.to_string()) };
    let bytes: u64 = written.values().map(IndexedRanges::bytes).sum();
    match reason {
        Some(reason) if !reason.is_of_time() => Some(reason.to_string()),
        _ => (bytes > 0).then(|| format!("{} were written since", Human(bytes))),
    }
}

/// What was written to the disks, by those who know it; `None` if nobody was named.
fn written(
    images: &[Image],
    since: &[Since],
    force_share: bool,
) -> Result<Option<BTreeMap<DiskNumber, IndexedRanges>>> {
    if since.len() > 1 && since.len() != images.len() {
        bail!("{} times --since for {} disks; give it once, or for each", since.len(), images.len());
    }
    let Some(first) = since.first() else { return Ok(None) };
    let each = since.iter().chain(std::iter::repeat(first));
    let of_disk = |((disk, image), since): ((DiskNumber, &Image), &Since)| {
        Ok((disk, since.written(image, force_share)?))
    };
    (1..).zip(images).zip(each).map(of_disk).collect::<Result<_>>().map(Some)
}

/// The images that the map names, or those that are given in their place.
fn named_images(map: &Map, args: &UpdateArgs) -> Result<Vec<PathBuf>> {
    let named = &map.header().images;
    if named.is_empty() {
        let file = args.map.display();
        bail!(
            "{file} does not say of which images it is (the original's text maps and CSV do not); map them \
             instead, and compare: virt-bmap-rs IMAGE... -o NEW; virt-bmap-rs diff {file} NEW"
        );
    }
    if args.image.is_empty() {
        return Ok(named.iter().map(|info| OsStr::from_bytes(&info.image.name).into()).collect());
    }
    if args.image.len() != named.len() {
        bail!(
            "the map is of a guest with {} disks, and --image was given {} times",
            named.len(),
            args.image.len()
        );
    }
    Ok(args.image.clone())
}

/// Refuses to write a map in a format in which less can be said than in that which it was read from.
fn refuse_lossy(old: &Map, out: &Path) -> Result<()> {
    let has_inodes = || old.objects().any(|object| object.attributes().inode.is_some());
    if FileType::of(out).format == MapFormat::Text && has_inodes() {
        bail!(
            "{} holds more than a text map, which its name stands for; name a .jsonl with -o",
            out.display()
        );
    }
    Ok(())
}

/// Opens the images to see what they are. Who writes to a raw disk could make it look like another format, so
/// that has to be stated.
fn open(disks: &[GuestDisk], header: &Header, force_share: bool) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for (disk, info) in disks.iter().zip(&header.images) {
        let image = virt_bmap_image::open(&disk.path, &OpenOptions { format: disk.format, force_share })
            .with_context(|| match disk.path.exists() {
                true => format!("disk {} of the map", info.disk),
                false => format!("disk {} of the map is not there; --image says where it is now", info.disk),
            })?;
        if disk.format.is_none() && image.format.to_string() != info.image.format {
            let (path, was) = (disk.path.display(), &info.image.format);
            bail!(
                "{path} was {was} when it was mapped, and looks like {} now; if it is, state that with \
                 --image-format",
                image.format
            );
        }
        images.push(image);
    }
    Ok(images)
}
