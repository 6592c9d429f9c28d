//! The page in headless Chromium. It must load without complaints, and show what the map says.

use super::browser::Browser;
use super::command::{report, samples};
use serde_json::Value;
use std::fs;
use std::path::Path;
use virt_bmap_map::{
    Attributes, Filesystem, Header, ImageFile, ImageInfo, Kind, Map, MapBuilder, Marks, ObjectName,
    PieceFlags, Role, Warning, load, save,
};
use virt_bmap_ranges::{DiskOffset, DiskRange, FileOffset, Printable};
use virt_bmap_testutil::tools::{self, needs};

/// The number of pixels of the map with the colour of found objects.
const LIT_PIXELS: &str = "(() => {
    const {width, height} = app.canvas.picture;
    const pixels = new Uint32Array(app.canvas.picture.getContext('2d').getImageData(0, 0, width, height).data.buffer);
    const lit = pixel(rgb(THEMES[app.theme].lit));
    return pixels.reduce((count, one) => count + (one === lit ? 1 : 0), 0);
})()";

/// A point of the page with such a pixel, at least three pixels from the edge of the area.
const LIT_POINT: &str = "(() => {
    const {width, height} = app.canvas.picture;
    const pixels = new Uint32Array(app.canvas.picture.getContext('2d').getImageData(0, 0, width, height).data.buffer);
    const lit = pixel(rgb(THEMES[app.theme].lit));
    const isLit = (x, y) => pixels[y * width + x] === lit;
    for (let y = 3; y < height - 3; y++) for (let x = 3; x < width - 3; x++) {
        if (isLit(x, y) && isLit(x - 3, y - 3) && isLit(x + 3, y + 3)) {
            const box = app.canvas.picture.getBoundingClientRect();
            return [box.left + x + 0.5, box.top + y + 0.5];
        }
    }
})()";

/// Makes the page of a map as a user makes it, and opens it.
fn open(dir: &Path, args: &[&str]) -> Browser {
    let output = report(dir, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut browser = Browser::start(1300, 850);
    browser.open(&dir.join("report.html"));
    browser
}

/// Types into the search field, after the key `/`.
fn search(browser: &mut Browser, text: &str) {
    browser.eval("document.activeElement.blur()");
    browser.key("/");
    assert_eq!(browser.text("document.activeElement.id"), "query");
    browser.eval("document.activeElement.select()");
    browser.type_text(text);
    browser.wait_for(&format!(
        "byId('query').value === {} && byId('status').textContent !== ''",
        Value::from(text)
    ));
    browser.eval("new Promise((done) => setTimeout(done, 200))");
    browser.settle();
}

fn point(browser: &mut Browser) -> (f64, f64) {
    let point = browser.eval(LIT_POINT);
    (point[0].as_f64().expect("a lit pixel"), point[1].as_f64().unwrap())
}

#[test]
fn what_is_searched_for_lights_up_and_can_be_hovered_and_clicked() {
    needs!("chromium");
    let dir = samples();
    let mut browser = open(dir.path(), &["guest.bmap"]);
    assert_eq!(browser.text("document.title"), "guest.bmap – block map");
    assert_eq!(browser.text("byId('subtitle').textContent"), "6 files on 1 disk, 8 MiB");
    assert_eq!(browser.number(LIT_PIXELS), 0.0);

    search(&mut browser, "/boot/VMLINUZ");
    assert_eq!(browser.text("byId('status').textContent"), "2 matches");
    let rows = browser.eval("[...byId('results').children].map((row) => row.firstChild.textContent)");
    assert_eq!(rows, serde_json::json!(["/boot/vmlinuz", "/boot/vmlinuz.old"]));
    // The file has 1 MiB of 8 MiB, an eighth of the square. The edge may differ.
    let side = browser.number("app.canvas.view.side");
    let part = browser.number(LIT_PIXELS) / (side * side);
    assert!((part - 0.125).abs() < 0.002, "{part}");

    let (x, y) = point(&mut browser);
    browser.mouse("mouseMoved", x, y, 0.0);
    let tip = browser.text("byId('tip').textContent");
    assert!(tip.starts_with("/boot/vmlinuz (+1 name)\nfile, 1 MiB on disk\n"), "{tip}");
    assert!(tip.ends_with("on /dev/sda1, /dev/sda"), "{tip}");
    browser.click(x, y);
    let details = browser.text("byId('details').innerText");
    for words in ["/boot/vmlinuz", "more names\t1", "1 MiB (1,048,576 B)", "pieces\t1", "1:0x200000"] {
        assert!(details.replace('\n', "\t").contains(words), "{words}: {details}");
    }

    // This file is in two pieces. Both are highlighted, and `n` goes from one to the other.
    search(&mut browser, "syslog");
    browser.key("Enter");
    assert_eq!(browser.number("app.pieces.length"), 2.0);
    let part = browser.number(LIT_PIXELS) / (side * side);
    let expected = f64::from(0x8000 + 0x4000) / f64::from(0x80_0000);
    assert!((part - expected).abs() < 0.002, "{part} {expected}");
    browser.eval("app.canvas.overlay.focus()");
    browser.key("n");
    assert!(browser.text("byId('status').textContent").starts_with("Place 2 of 2: 1:0x500000, 16 KiB"));
    let centre = browser
        .number("app.canvas.view.offsetAt(app.disk, app.canvas.view.width / 2, app.canvas.view.height / 2)");
    assert!((f64::from(0x50_0000)..f64::from(0x50_4000)).contains(&centre), "{centre:#?}");

    // Search for an offset, and for a name that does not exist.
    search(&mut browser, "0x308010");
    assert!(browser.text("byId('status').textContent").starts_with("/var/lib/dpkg/status · file"));
    search(&mut browser, "no such thing");
    assert_eq!(browser.text("byId('status').textContent"), "Nothing has “no such thing” in its path");
    browser.key("Escape");
    assert_eq!(browser.text("byId('query').value"), "");
    assert_eq!(browser.number(LIT_PIXELS), 0.0);
    browser.assert_quiet();
}

#[test]
fn tables_tell_what_is_large_fragmented_shared_and_free() {
    needs!("chromium");
    let dir = samples();
    let map = dir.path().join("guest.bmap");
    let balance = "used=10000 in-files=9000 in-directories=500 in-metadata=499 superseded=0 unexplained=1 \
                   claimed-twice=0 claimed-free=0";
    let filesystem = format!("# filesystem /dev/sda1 type=ext4 {balance} directories=1 files=1\n1 0 ");
    let text = fs::read_to_string(&map).unwrap().replacen("1 0 ", &filesystem, 1);
    fs::write(&map, text).unwrap();
    let mut browser = open(dir.path(), &["guest.bmap"]);
    let rows = "[...document.querySelectorAll('#table tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent).join('|'))";
    let first = |browser: &mut Browser, tab: &str| {
        browser.eval(&format!("byId('tab-{tab}').click()"));
        browser.eval(rows)[0].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(first(&mut browser, "largest"), "1 MiB|1|/boot/vmlinuz");
    assert_eq!(first(&mut browser, "fragmented"), "2|48 KiB|/var/log/syslog");
    assert_eq!(first(&mut browser, "shared"), "");
    assert!(browser.text("byId('table').innerText").contains("No file is shared"));
    assert_eq!(first(&mut browser, "free"), "2 MiB|1:0x504000|/dev/sda1");
    browser.eval("document.querySelector('#table tbody button').click()");
    let part = browser.number("app.canvas.view.zoom");
    assert!(part >= 1.0, "{part}");
    browser.eval("byId('tab-largest').click(); document.querySelector('#table tbody button').click()");
    assert!(browser.text("byId('details').innerText").starts_with("/boot/vmlinuz"));
    browser.eval("byId('tab-about').click()");
    assert!(browser.text("byId('table').innerText").contains("guest.raw (raw)"));
    let said = browser.text("byId('table').innerText");
    assert!(said.contains("/dev/sda1: ext4, 99.99 % of the bytes in use accounted for"), "{said}");
    browser.assert_quiet();
}

#[test]
fn mouse_fingers_and_keys_move_the_map() {
    needs!("chromium");
    let dir = samples();
    let mut browser = open(dir.path(), &["guest.bmap"]);
    let zoom = |browser: &mut Browser| browser.number("app.canvas.view.zoom");
    let centre = |browser: &mut Browser| browser.number("app.canvas.view.x");
    let (x, y) = (400.0, 400.0);

    // When the wheel zooms, the point under the pointer stays there.
    let at = format!("app.canvas.view.toDisk({x} - byId('overlay').getBoundingClientRect().left, 0).x");
    let before = browser.number(&at);
    browser.mouse("mouseWheel", x, y, -240.0);
    browser.mouse("mouseWheel", x, y, -240.0);
    assert!(zoom(&mut browser) > 3.0);
    assert!((browser.number(&at) - before).abs() < 1e-6);

    let before = centre(&mut browser);
    browser.mouse("mouseMoved", x, y, 0.0);
    browser.mouse("mousePressed", x, y, 0.0);
    browser.call(
        "Input.dispatchMouseEvent",
        &serde_json::json!({"type": "mouseMoved", "x": x - 60.0, "y": y, "button": "left", "buttons": 1}),
    );
    browser.mouse("mouseReleased", x - 60.0, y, 0.0);
    let side = browser.number("app.canvas.view.side");
    assert!((centre(&mut browser) - before - 60.0 / side).abs() < 1e-6);
    assert!(browser.eval("app.chosen === null").as_bool().unwrap(), "a drag is no click");

    browser.eval("byId('zoom-reset').click()");
    assert_eq!(zoom(&mut browser), 1.0);
    browser.touch("touchStart", &[(350.0, 400.0), (450.0, 400.0)]);
    browser.touch("touchMove", &[(300.0, 400.0), (500.0, 400.0)]);
    browser.touch("touchEnd", &[]);
    assert!((zoom(&mut browser) - 2.0).abs() < 0.1, "{}", zoom(&mut browser));

    // Only with keys, from the first control of the page.
    browser.eval("byId('scheme').focus()");
    for _ in 0..3 {
        browser.key("Tab");
        if browser.text("document.activeElement.id") == "overlay" {
            break;
        }
    }
    assert_eq!(browser.text("document.activeElement.id"), "overlay");
    browser.key("0");
    assert_eq!(zoom(&mut browser), 1.0);
    browser.key("+");
    browser.key("+");
    assert!((zoom(&mut browser) - 2.25).abs() < 1e-9);
    let before = centre(&mut browser);
    browser.key("ArrowRight");
    assert!(centre(&mut browser) > before);
    let status = browser.text("byId('status').textContent");
    assert!(status.contains("1:0x"), "{status}");
    browser.key("-");
    browser.key("0");
    // The middle of the disk is in the middle of the square. Enter chooses what lies there.
    search(&mut browser, "0x400000");
    browser.eval("app.canvas.overlay.focus()");
    browser.key("Enter");
    assert!(browser.text("byId('details').innerText").starts_with("/var/cache/big"));
    browser.assert_quiet();
}

#[test]
fn the_page_follows_the_preferred_colours_and_its_own_switch() {
    needs!("chromium");
    let dir = samples();
    let mut browser = open(dir.path(), &["guest.bmap"]);
    let background = "getComputedStyle(document.body).backgroundColor";
    assert_eq!(browser.text(background), "rgb(255, 255, 255)");
    browser.prefer("dark");
    browser.settle();
    assert_eq!(browser.text(background), "rgb(20, 23, 26)");
    assert_eq!(browser.text("byId('theme').textContent"), "Light");
    browser.eval("byId('theme').click()");
    assert_eq!(browser.text(background), "rgb(255, 255, 255)");

    // Each scheme has a legend whose shares add up to the whole disk.
    for scheme in ["directory", "type", "fragmentation", "device"] {
        browser.eval(&format!(
            "byId('scheme').value = '{scheme}'; byId('scheme').dispatchEvent(new Event('change'))"
        ));
        browser.settle();
        let legend =
            browser.eval("[...document.querySelectorAll('#legend li')].map((item) => item.textContent)");
        assert!(legend.as_array().unwrap().len() >= 2, "{legend}");
        let shares: f64 = browser.number("[...document.querySelectorAll('#legend .bytes')].reduce((sum, item) => sum + parseFloat(item.textContent.split(', ')[1].replace('< ', '')), 0)");
        assert!((shares - 100.0).abs() < 0.5, "{scheme}: {shares}: {legend}");
    }
    assert!(browser.eval("byId('scheme').querySelector('[value=age]').disabled").as_bool().unwrap());

    // In a narrow window the tables are below the map.
    let metrics = serde_json::json!({"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": false});
    browser.call("Emulation.setDeviceMetricsOverride", &metrics);
    browser.settle();
    assert!(browser.number("document.documentElement.scrollWidth") <= 400.0);
    assert!(browser.number("document.querySelector('aside').getBoundingClientRect().top") > 300.0);
    browser.assert_quiet();
}

#[test]
fn requests_play_over_time() {
    needs!("chromium");
    let dir = samples();
    let mut browser = open(dir.path(), &["guest.bmap", "--trace", "boot.jsonl"]);
    // The log reads and writes 1 MiB of /boot/vmlinuz in order, within 4 s.
    assert_eq!(browser.text("byId('clock').textContent"), "0.00 s of 3.98 s, 1 of 256 requests");
    let marked = "(() => {
        const {width, height} = app.playback.trail.canvas;
        const data = app.playback.trail.canvas.getContext('2d').getImageData(0, 0, width, height).data;
        let count = 0;
        for (let i = 3; i < data.length; i += 4) if (data[i] > 127) count++;
        return count / app.canvas.view.side ** 2;
    })()";
    browser.eval("byId('time').value = 500; byId('time').dispatchEvent(new Event('input'))");
    browser.settle();
    assert_eq!(browser.text("byId('clock').textContent"), "1.99 s of 3.98 s, 128 of 256 requests");
    let half = browser.number(marked);
    assert!((half - 0.0625).abs() < 0.004, "{half}");
    assert_eq!(
        browser.text("byId('requests').firstChild.textContent"),
        "read 4 KiB at 1:0x27f000 /boot/vmlinuz"
    );
    browser.eval("byId('speed').value = '5'; byId('play').click()");
    assert_eq!(browser.text("byId('play').textContent"), "Pause");
    browser.wait_for("byId('play').textContent === 'Play'");
    browser.settle();
    let all = browser.number(marked);
    assert!((all - 0.125).abs() < 0.004, "{all}");
    // After a step back, later requests are not marked.
    browser.eval("app.playback.seek(1)");
    browser.settle();
    assert!(browser.number(marked) < 0.04);
    browser.assert_quiet();

    assert_eq!(browser.text("String(byId('operations').hidden)"), "true");
    drop(browser);
    // As docs/operations.md shows.
    let played = ["guest.bmap", "--trace", "boot.jsonl", "--operations", "done.jsonl"];
    let mut browser = open(dir.path(), &played);
    let told = "[...byId('operations').children].map((line) => line.textContent).join(', ')";
    assert_eq!(browser.text(told), "");
    browser.eval("app.playback.seek(2)");
    browser.settle();
    let lines = "1.25 s create f /dev/sda1 /</li>later, 0.50 s create f /dev/sda1 /early";
    assert_eq!(browser.text(told), lines);
    browser.eval("app.playback.seek(1)");
    browser.settle();
    assert_eq!(browser.text(told), "0.50 s create f /dev/sda1 /early");
    browser.assert_quiet();

    drop(browser);
    let mut browser = open(dir.path(), &["guest.bmap", "--trace", "boot.log", "--bytes"]);
    browser.eval("app.playback.seek(1)");
    assert_eq!(browser.text("byId('clock').textContent"), "2 of 2 requests");
    assert_eq!(browser.text("byId('requests').firstChild.textContent"), "read 1024 B at 1:1048576 /");
    browser.assert_quiet();
}

/// A map with hostile names, and the names. JSON Lines can hold all of them.
fn hostile() -> (Map, Vec<Vec<u8>>) {
    let names: Vec<Vec<u8>> = [
        &b"<script>window.pwned=1</script>"[..],
        b"</script><script>window.pwned=2</script>",
        b"<!--<script>",
        b"<img src=x onerror=window.pwned=3>",
        b"\"'><svg onload=window.pwned=4>",
        b"a\nb\tc\0d\x1b[2J",
        b"not utf-8 \xff\xc3",
        "line\u{2028}paragraph\u{2029}".as_bytes(),
        "gpj\u{202e}exe".as_bytes(),
        b"&lt;b&gt;&amp;",
        b"\\u003c ${window.pwned=5} `",
        b"__proto__",
        "日本語 é 𝄞".as_bytes(),
    ]
    .iter()
    .map(|name| [b"/dir/", *name].concat())
    .collect();
    let evil = "</script><script>window.pwned=6</script>";
    let mut builder = MapBuilder::new(Header::default());
    builder.header_mut().generator = evil.into();
    builder.header_mut().warnings = vec![Warning::sentence(evil)];
    let image = ImageFile { name: evil.as_bytes().to_vec(), format: "raw".into() };
    builder.header_mut().images =
        vec![ImageInfo { disk: 1, size: 1 << 20, sector: 512, image, snapshot: None, chain: Vec::new() }];
    builder.header_mut().filesystems =
        vec![Filesystem { device: evil.as_bytes().to_vec(), kind: evil.into(), ..Filesystem::default() }];
    for (name, place) in names.iter().zip(1..) {
        let object = ObjectName::path(Kind::File, evil.as_bytes(), name);
        let object = builder.object(object, Attributes::default()).unwrap();
        builder
            .piece(object, 1, DiskRange::new(place * 4096, (place + 1) * 4096), Some(FileOffset(0)))
            .unwrap();
    }
    (builder.build(), names)
}

#[test]
fn hostile_names_stay_text() {
    needs!("chromium");
    let dir = tempfile::tempdir().unwrap();
    let (map, names) = hostile();
    let file = "<b>guest&.jsonl";
    save(&map, &dir.path().join(file)).unwrap();
    let mut browser = open(dir.path(), &[file]);
    assert_eq!(browser.text("byId('title').textContent"), file);
    for name in &names {
        let shown = Printable(name).to_string();
        search(&mut browser, &shown);
        let row = browser.text("byId('results').firstChild.firstChild.textContent");
        assert_eq!(row, shown);
        browser.key("Enter");
        assert_eq!(browser.text("byId('details').querySelector('h2').textContent"), shown);
        assert!(browser.number(LIT_PIXELS) > 0.0, "{shown}");
    }
    for tab in ["largest", "fragmented", "shared", "free", "about"] {
        browser.eval(&format!("byId('tab-{tab}').click()"));
    }
    browser.eval("byId('scheme').value = 'device'; byId('scheme').dispatchEvent(new Event('change'))");
    assert_eq!(browser.eval("window.pwned === undefined"), true);
    let elements = "document.querySelectorAll('img, svg, iframe, b, object, embed, link, a').length";
    assert_eq!(browser.number(elements), 0.0);
    assert_eq!(browser.number("document.scripts.length"), 3.0);
    browser.assert_quiet();

    // Even if a name became an element, the policy of the page would block it.
    browser.eval("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.pwned = 7'}))");
    browser.eval(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'file:///dev/null'}))",
    );
    let loaded = browser.eval("fetch(location.href).then(() => true, () => false)");
    assert_eq!(loaded, false);
    assert_eq!(browser.eval("window.pwned === undefined"), true);
    assert!(
        browser.complaints.iter().any(|told| told.contains("Content Security Policy")),
        "{:?}",
        browser.complaints
    );
}

/// Two disks with everything that a map can have: offsets, copies, flags, times, shared bytes.
fn rich() -> Map {
    let mut builder = MapBuilder::new(Header::default());
    let mut objects = Vec::new();
    for number in 0..40u64 {
        let path = format!("/home/user{}/file-{number}", number % 5);
        let attributes = Attributes {
            inode: Some(1000 + number),
            size: Some(number * 5000),
            modified: Some((1_500_000_000 + number as i64 * 5_000_000) * 1_000_000_000),
            marks: if number % 7 == 0 { Marks::SPARSE } else { Marks::empty() },
            ..Attributes::default()
        };
        objects.push(
            builder.object(ObjectName::path(Kind::File, b"/dev/md0", path.as_bytes()), attributes).unwrap(),
        );
    }
    let mut state = 12345u64;
    let mut random = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % limit
    };
    for piece in 0..600 {
        let object = objects[random(40) as usize];
        let start = 4096 * random(4000);
        let range = DiskRange::new(start, start + 4096 * (1 + random(12)));
        let offset = (piece % 5 != 0).then(|| FileOffset(512 * random(1 << 20)));
        let role =
            if piece % 9 == 0 { PieceFlags::UNWRITTEN.into() } else { Role::copy((piece % 3 == 0).into()) };
        builder.piece_as(object, 1 + (piece % 2) as u16, range, offset, role).unwrap();
    }
    for disk in 1..=2 {
        let name = format!("/dev/sd{}", char::from(b'`' + disk as u8));
        let object =
            builder.object(ObjectName::device(Kind::Disk, name.as_bytes()), Attributes::default()).unwrap();
        builder.piece(object, disk, DiskRange::new(0, 20 << 20), None).unwrap();
    }
    builder.build()
}

#[test]
fn the_page_knows_of_every_byte_what_the_map_knows() {
    needs!("chromium");
    let dir = tempfile::tempdir().unwrap();
    save(&rich(), &dir.path().join("rich.jsonl")).unwrap();
    let map = load(&dir.path().join("rich.jsonl")).unwrap();
    let mut browser = open(dir.path(), &["rich.jsonl"]);
    let answers = browser.eval(
        "[1, 2].flatMap((number) => Array.from({length: 5120}, (_, block) => {
            const disk = app.model.disks.find((disk) => disk.number === number);
            const offset = block * 4096 + 100;
            const interval = intervalAt(disk, offset);
            const members = app.model.members(disk.owners[interval]);
            const inside = fileOffsetAt(app.model, disk, interval, members[0]) + offset - disk.starts[interval];
            return [members.map((member) => app.model.label(member)).join(), isNaN(inside) ? null : inside, roleText(app.model, disk, interval)];
        }))",
    );
    let mut shared = 0;
    for (answer, place) in answers.as_array().unwrap().iter().zip(0..) {
        let (disk, offset) = (1 + place / 5120, place % 5120 * 4096 + 100);
        let hits = map.at(disk as u16, DiskOffset(offset));
        let mut names: Vec<_> = hits
            .iter()
            .filter(|hit| hit.object.kind() == Kind::File)
            .map(|hit| hit.object.name().path)
            .collect();
        names.dedup();
        let mut names: Vec<_> = names.iter().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
        shared += usize::from(names.len() > 1);
        let first = hits[0];
        if names.is_empty() {
            names.push(String::from_utf8(first.object.name().device.to_vec()).unwrap());
        }
        assert_eq!(answer[0], names.join(","), "{disk}:{offset}");
        if names.len() > 1 || hits.iter().filter(|hit| hit.object == first.object).count() > 1 {
            continue; // the first use of the byte is told, whichever that is
        }
        assert_eq!(answer[1].as_f64(), first.file_offset.map(|offset| offset.0 as f64), "{disk}:{offset}");
        let mut role: Vec<_> = first.role.flags.names().map(str::to_owned).collect();
        if first.role.copy > 0 {
            role.insert(0, format!("copy {}", first.role.copy + 1));
        }
        assert_eq!(answer[2], role.join(", "), "{disk}:{offset}");
    }
    assert!(shared > 500, "{shared}");

    // The attributes of a file, and the second disk.
    search(&mut browser, "file-14");
    browser.key("Enter");
    let details = browser.text("byId('details').innerText").replace('\n', "\t");
    for words in ["inode\t1014", "68 KiB (70,000 B)", "marks\tsparse", "2019-10-02 07:06:40 UTC"] {
        assert!(details.contains(words), "{words}: {details}");
    }
    assert_eq!(browser.number("app.model.disks.length"), 2.0);
    browser.eval("byId('disk').value = '2'; byId('disk').dispatchEvent(new Event('change'))");
    assert_eq!(browser.number("app.disk.number"), 2.0);
    browser.eval("byId('scheme').value = 'age'; byId('scheme').dispatchEvent(new Event('change'))");
    browser.settle();
    let legend = browser.text("byId('legend').textContent");
    assert!(legend.contains("within a year") && legend.contains("UTC"), "{legend}");
    browser.assert_quiet();
}

#[test]
fn the_map_of_a_whole_guest_opens_at_once() {
    needs!("chromium");
    let Some(map) = tools::original_map() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut browser = open(dir.path(), &[map.to_str().unwrap()]);
    assert!(fs::metadata(dir.path().join("report.html")).unwrap().len() < 2_000_000);
    search(&mut browser, "/vmlinuz-3.11.10-301");
    assert!(browser.text("byId('status').textContent").starts_with("1 match"));
    browser.key("Enter");
    assert!(browser.text("byId('details').innerText").starts_with("/vmlinuz-3.11.10-301.fc20.x86_64"));
    assert!(browser.number(LIT_PIXELS) > 100.0);
    // Draw all of the map, and a part of it.
    for zoom in ["app.canvas.view.zoomBy(1e-9)", "app.canvas.view.zoomBy(30)"] {
        let took = browser.number(&format!("{zoom}; (() => {{ const start = performance.now(); app.drawNow(); return performance.now() - start; }})()"));
        assert!(took < 1000.0, "{took} ms");
    }
    browser.assert_quiet();
}

/// Counts the pixels of two pictures that differ, as far as both have them.
const DIFFERING: &str = "(async (a, b) => {
    const pixels = async (data) => {
        const image = new Image();
        image.src = 'data:image/png;base64,' + data;
        await image.decode();
        const canvas = new OffscreenCanvas(image.width, image.height);
        const context = canvas.getContext('2d', {willReadFrequently: true});
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, image.width, image.height);
    };
    const [one, other] = [await pixels(a), await pixels(b)];
    if (one.width !== other.width || one.height !== other.height) return 1;
    let count = 0;
    for (let at = 0; at < one.data.length; at += 4) {
        const far = (channel) => Math.abs(one.data[at + channel] - other.data[at + channel]) > 64;
        if (far(0) || far(1) || far(2)) count++;
    }
    return count * 4 / one.data.length;
})";

/// The picture of the page shows what the program shows, but for the fonts of the machine.
#[test]
fn the_picture_in_the_documentation() {
    needs!("chromium");
    let Some(map) = tools::original_map() else { return };
    let dir = samples();
    assert!(report(dir.path(), &[map.to_str().unwrap()]).status.success());
    let mut browser = Browser::start(1280, 820);
    browser.open(&dir.path().join("report.html"));
    browser.mouse("mouseMoved", 134.0, 274.0, 0.0);
    browser.wait_for("document.body.innerText.includes('on disk in 4 pieces')");
    let picture = browser.call("Page.captureScreenshot", &serde_json::json!({"format": "png"}));
    let now = picture["data"].as_str().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.png");
    // The browser decodes what it encodes.
    let decode =
        |data: &str| tools::output(tools::command("base64").arg("-d").stdin(file_of(dir.path(), data)));
    if std::env::var_os("VIRT_BMAP_BLESS").is_some() {
        fs::write(path, decode(now).stdout).unwrap();
        return;
    }
    let shown = String::from_utf8(tools::run("base64", ["-w0".as_ref(), path.as_os_str()])).unwrap();
    // The page may load pictures of its own only.
    let mut blank = Browser::start(100, 100);
    let differing = blank.number(&format!("{DIFFERING}('{now}', '{}')", shown.trim()));
    assert!(differing < 0.1, "{differing} of docs/report.png differ; VIRT_BMAP_BLESS=1 makes it again");
}

/// A file with this text, to read.
fn file_of(dir: &Path, text: &str) -> fs::File {
    fs::write(dir.join("text"), text).unwrap();
    fs::File::open(dir.join("text")).unwrap()
}

#[test]
fn a_page_that_cannot_be_read_says_so() {
    needs!("chromium");
    let dir = samples();
    assert!(report(dir.path(), &["guest.bmap"]).status.success());
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    let (before, rest) = page.split_once("id=\"columns\">").unwrap();
    let damaged = dir.path().join("damaged.html");
    fs::write(&damaged, format!("{before}id=\"columns\">AAAA{}", &rest[4..])).unwrap();
    let mut browser = Browser::start(800, 600);
    browser.call("Page.navigate", &serde_json::json!({"url": format!("file://{}", damaged.display())}));
    browser.wait_for("document.body && document.body.dataset.state === 'failed'");
    assert!(browser.text("byId('status').textContent").starts_with("The page could not be drawn"));
    browser.settle();
    assert!(!browser.complaints.is_empty());
}
