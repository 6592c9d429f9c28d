//! `virt-bmap-rs update`: brings a map up to date if its guest has changed.

use super::Exit;
use super::answer::AnswerFormat;
use super::diff::{self, Sort, print_changes};
use super::live::{self, LiveOptions};
use super::make::with_formats;
use super::map::{MapOptions, location, map_to, refuse_to_overwrite, summarise};
use super::progress::ProgressMode;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::live::View;
use virt_bmap::mapper::GuestDisk;
use virt_bmap::probe::baseline::Baseline;
use virt_bmap::update::{self, Since};
use virt_bmap_image::{Access, Image, ImageFormat, Location, NbdUri};
use virt_bmap_map::{self as bmap, FileType, Format as MapFormat, Header, ImageInfo, Map};
use virt_bmap_ranges::{DiskNumber, Human, IndexedRanges, Printable};

/// Update a map if its guest has changed, and show the differences.
///
/// The map names its images. If none of them and none of their backing files is newer than the
/// map's file or has another size or format, nothing is done. Otherwise the guest is mapped again:
/// with a map in JSON Lines as baseline, only changed files are read; with a text map, all files.
/// The new map replaces the old one and is the same as one made from scratch. The map does not
/// record --probe guestfsd, --legs and --key: give them as when the map was made. The new map has
/// metadata if the old one has.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct UpdateArgs {
    /// The map: a file, not standard input
    map: PathBuf,

    /// Where the guest's disk is now, if it has moved since; give it once for each disk, in order
    #[arg(long, value_name = "IMAGE", conflicts_with_all = live::OPTIONS, value_parser = location())]
    image: Vec<Location>,

    /// Format of the images (raw, qcow2, vmdk, …); detected by default
    ///
    /// Detected by default, as when a guest is mapped; it must be the format that the map records.
    /// If given once, it applies to all images; if repeated, to one image after the other.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = live::OPTIONS)]
    image_format: Vec<ImageFormat>,

    /// Source for what was written since the map was made: bitmap:NAME, snapshot:NAME, image:PATH
    /// or checkpoint:NAME
    ///
    /// A dirty bitmap of the qcow2 image, an internal snapshot of it, or an image of the older
    /// disk, taken when the map was made or before; or, with --live, a checkpoint of the domain. If nothing was written, the guest counts as
    /// unchanged, whatever the image's modification time is. Otherwise files in the written ranges
    /// are read again, whatever their times are. If given once, it applies to all images; if
    /// repeated, to one image after the other.
    #[arg(long, value_name = "WHAT")]
    since: Vec<Since>,

    /// Map again even if nothing seems to have changed, and read all files
    #[arg(long)]
    again: bool,

    /// Write the map to this file, changed or not, and keep the old map
    ///
    /// The suffix selects the format, as when an image is mapped.
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,

    /// The guest of the map is this libvirt domain, which runs; needs --live
    #[arg(short, long, value_name = "DOMAIN", requires = "live", conflicts_with = "qmp")]
    domain: Option<String>,

    /// Connection URI of the domain's libvirt host, as for `virsh -c`
    #[arg(short, long, value_name = "URI", requires = "domain")]
    connect: Option<String>,

    #[command(flatten)]
    live: LiveOptions,

    #[command(flatten)]
    form: AnswerFormat,

    #[command(flatten, next_help_heading = "Options for making a map")]
    mapping: MapOptions,
}

const AFTER_HELP: &str = "\
Exit status:
  0    nothing has changed, or everything was examined again
  1    error; the old map was not changed
  2    usage error
  3    a map was written, but something could not be examined; standard error
       and the first lines of the map list what
  130  interrupted (143: terminated); the old map was not changed

Examples:
  virt-bmap-rs update guest.bmap
  virt-bmap-rs update guest.jsonl.zst --image /new/place/guest.qcow2 --csv";

pub(super) fn run(args: &UpdateArgs) -> Result<Exit> {
    let old_file = args.map.as_path();
    if old_file == Path::new("-") {
        bail!("the map must be a file: its modification time is compared with that of the images");
    }
    let out = args.output.as_deref().unwrap_or(old_file);
    if out == Path::new("-") {
        bail!("the list of changes goes to standard output; name a file with -o");
    }
    let old = bmap::load(old_file)?;
    if args.output.is_none() {
        refuse_lossy(&old, out)?;
    }
    let mut options = args.mapping.clone();
    // The new map has what the old one had, so that they can be compared.
    let had_metadata = old.lists_metadata();
    options.metadata |= had_metadata && !options.no_metadata;
    options.no_metadata |= !options.metadata;
    if let Some(exit) = options.contradiction() {
        return Ok(exit);
    }
    options.start_log();
    let State { disks, reason, written, view } = match view(args)? {
        Some(view) => State::of_view(&old, view, !args.since.is_empty())?,
        None => State::of_images(&old, args, &options)?,
    };
    refuse_to_overwrite(&disks, &[out.to_owned()])?;
    options.view = view;
    let reason = reason
        .or_else(|| args.again.then(|| "--again was given".to_owned()))
        .or_else(|| (options.metadata && !had_metadata).then(|| "the map has no metadata".to_owned()));
    let Some(reason) = reason else {
        if let Some(view) = &options.view {
            // The old map is a map of this moment, too.
            view.end(true)?;
        }
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
        note!("mapping again: {reason}");
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

/// The state of the guest, compared with its map.
struct State {
    disks: Vec<GuestDisk>,
    /// Why the map must be made again, if it must.
    reason: Option<String>,
    /// What was written, as far as that is known.
    written: BTreeMap<DiskNumber, IndexedRanges>,
    /// The view of the guest, if it runs.
    view: Option<Arc<View>>,
}

impl State {
    /// That of images. They are closed before the guest is mapped, because the mapper opens and
    /// locks them.
    fn of_images(old: &Map, args: &UpdateArgs, options: &MapOptions) -> Result<Self> {
        let mut disks = with_formats(&named_images(old, args)?, &args.image_format, &options.tls)?;
        for (disk, info) in disks.iter_mut().zip(&old.header().images) {
            disk.snapshot.clone_from(&info.snapshot);
        }
        let access = options.access(None)?;
        let images = open(&disks, old.header(), &access)?;
        let written = written(&images, &args.since, &access)?;
        let reason = reason(old, &args.map, &images, written.as_ref());
        Ok(Self { disks, reason, written: written.unwrap_or_default(), view: None })
    }

    /// That of a guest that runs. Its images have no times that tell anything.
    fn of_view(old: &Map, view: View, is_since: bool) -> Result<Self> {
        let disks = view.disks();
        if disks.len() != old.header().images.len() {
            bail!(
                "the guest of the map has {} disks, and the one that runs has {}",
                old.header().images.len(),
                disks.len()
            );
        }
        let written = view.written()?;
        let bytes: u64 = written.values().map(IndexedRanges::bytes).sum();
        let reason = match (is_since, bytes) {
            (true, 0) => None,
            (true, _) => Some(format!("{} were written since the map was made", Human(bytes))),
            (false, _) => Some("the guest runs".to_owned()),
        };
        Ok(Self { disks, reason, written, view: Some(Arc::new(view)) })
    }
}

/// The view of the guest, if it runs.
fn view(args: &UpdateArgs) -> Result<Option<View>> {
    let host = Host { uri: args.connect.clone(), force_share: false };
    let since = match &args.since[..] {
        [] => None,
        [Since::Checkpoint(name)] => Some(&**name),
        _ if args.live.is_wanted() => bail!("with a guest that runs, --since takes one checkpoint:NAME"),
        _ => None,
    };
    if since.is_some() && args.live.qmp.is_some() {
        bail!("a checkpoint needs a domain of libvirt: --domain and --live");
    }
    let domain = args.domain.as_deref().map(|domain| (&host, domain));
    args.live.view(domain, since, args.mapping.quiet)
}

/// Why the map must be made again, judged from its images and from what was written.
fn reason(
    old: &Map,
    old_file: &Path,
    images: &[Image],
    written: Option<&BTreeMap<DiskNumber, IndexedRanges>>,
) -> Option<String> {
    let reason = update::reason(old, old_file, images);
    let Some(written) = written else { return reason.map(|reason| reason.to_string()) };
    let bytes: u64 = written.values().map(IndexedRanges::bytes).sum();
    match reason {
        Some(reason) if !reason.is_only_time() => Some(reason.to_string()),
        _ => (bytes > 0).then(|| format!("{} were written since the map was made", Human(bytes))),
    }
}

/// What was written to each disk according to `--since`; `None` without that option.
fn written(
    images: &[Image],
    since: &[Since],
    access: &Access,
) -> Result<Option<BTreeMap<DiskNumber, IndexedRanges>>> {
    if since.len() > 1 && since.len() != images.len() {
        bail!(
            "--since was given {} times for {} disks; give it once for all disks, or once for each",
            since.len(),
            images.len()
        );
    }
    let Some(first) = since.first() else { return Ok(None) };
    let each = since.iter().chain(std::iter::repeat(first));
    let of_disk =
        |((disk, image), since): ((DiskNumber, &Image), &Since)| Ok((disk, since.written(image, access)?));
    (1..).zip(images).zip(each).map(of_disk).collect::<Result<_>>().map(Some)
}

/// The images of `--image`, or else those that the map names: only files, since a map is not the
/// user's word for connecting to a server.
fn named_images(map: &Map, args: &UpdateArgs) -> Result<Vec<Location>> {
    let named = &map.header().images;
    if named.is_empty() {
        let file = args.map.display();
        bail!(
            "{file}: the map does not name its images (text maps of the original virt-bmap and CSV do not); \
             make a new map and compare: virt-bmap-rs IMAGE... -o NEW; virt-bmap-rs diff {file} NEW"
        );
    }
    if args.image.is_empty() {
        let file = |info: &ImageInfo| {
            let name = OsStr::from_bytes(&info.image.name);
            if NbdUri::is_meant(name) {
                bail!(
                    "disk {} of the map was on an NBD server, {}; a map is not trusted to name a server: state it with --image",
                    info.disk,
                    Printable(&info.image.name)
                );
            }
            Ok(Location::File(name.into()))
        };
        return named.iter().map(file).collect();
    }
    let mut images = Vec::new();
    for image in &args.image {
        images.extend(virt_bmap_image::disks(image, args.image_format.first().copied())?);
    }
    if images.len() != named.len() {
        bail!("the guest of the map has {} disks, but --image names {}", named.len(), images.len());
    }
    Ok(images)
}

/// Refuses to replace a map by a text map, if that would lose attributes of its objects.
fn refuse_lossy(old: &Map, out: &Path) -> Result<()> {
    let has_inodes = || old.objects().any(|object| object.attributes().inode.is_some());
    if FileType::of(out).format == MapFormat::Text && has_inodes() {
        bail!(
            "{}: this map holds attributes that a text map, the format of its suffix, cannot hold; name a .jsonl file with -o",
            out.display()
        );
    }
    Ok(())
}

/// Opens the images and checks their formats. A guest can write data to a raw disk that look like
/// another format, so a changed format must be stated by the user.
fn open(disks: &[GuestDisk], header: &Header, access: &Access) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for (disk, info) in disks.iter().zip(&header.images) {
        let image =
            disk.open(access).with_context(|| match disk.location.file().is_none_or(Path::exists) {
                true => format!("disk {} of the map", info.disk),
                false => format!(
                    "disk {} of the map does not exist at its old path; name the new one with --image",
                    info.disk
                ),
            })?;
        if disk.format.is_none() && image.format.to_string() != info.image.format {
            let (path, was) = (&disk.location, &info.image.format);
            bail!(
                "{path}: the format was {was} when it was mapped, and {} is detected now; confirm the new format \
                 with --image-format",
                image.format
            );
        }
        images.push(image);
    }
    Ok(images)
}
