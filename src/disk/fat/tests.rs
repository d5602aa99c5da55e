use super::{
    super::testing::{Bench, ask, run},
    *,
};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

fn options(size: u64) -> Options {
    Options { size, label: "CIDATA".to_owned(), serial: 0x1234_abcd, epoch: 1_750_000_000, first_sector: 0 }
}

fn bytes(text: &str) -> Data {
    Data::Bytes(text.as_bytes().to_vec())
}

fn made(bench: &Bench, files: &BTreeMap<String, Data>, size: u64) -> PathBuf {
    let image = bench.raw("volume.fat", &format(files, &options(size)).unwrap());
    ask("fsck.vfat -n {}", &image);
    image
}

fn sample(bench: &Bench) -> BTreeMap<String, Data> {
    [
        ("user-data".to_owned(), bytes("#cloud-config\n")),
        ("meta-data".to_owned(), bytes("instance-id: one\n")),
        ("empty".to_owned(), bytes("")),
        ("EFI/BOOT/BOOTX64.EFI".to_owned(), Data::Content(bench.content(&[0x5a; 100_000]))),
        (format!("EFI/{}/grub.cfg", "ä long name ".repeat(12).trim()), bytes("configfile\n")),
    ]
    .into()
}

#[test]
fn volumes_of_both_widths_are_clean_and_read_back() {
    let bench = Bench::new();
    let mut files = sample(&bench);
    for number in 0..600 {
        files.insert(format!("many/file number {number}"), bytes("x"));
    }
    for (size, kind) in [(4 * MIB, "16"), (32 * MIB, "16"), (40 * MIB, "32"), (124 * MIB, "32"), (600 * MIB, "32")] {
        let image = made(&bench, &files, size);
        let boot = std::fs::read(&image).unwrap();
        let field = if kind == "16" { 54 } else { 82 };
        assert_eq!(&boot[field..field + 8], format!("FAT{kind}   ").as_bytes(), "{size}");
        for (name, data) in &files {
            let Some(said) = mtype(&image, name) else { return };
            match data {
                Data::Bytes(bytes) => assert_eq!(said.as_bytes(), bytes, "{name}"),
                Data::Content(content) => assert_eq!(said.len() as u64, content.size, "{name}"),
            }
            if name.starts_with("many/") {
                break;
            }
        }
    }
}

/// What mtools read as the file of this name, whose spaces it takes as patterns for any character.
fn mtype(image: &std::path::Path, name: &str) -> Option<String> {
    ask(&format!("mtype -i {{}} ::/{}", name.replace(' ', "?")), image)
}

#[test]
fn label_serial_and_time_are_the_given_ones() {
    let bench = Bench::new();
    let image = made(&bench, &sample(&bench), 4 * MIB);
    if let Some(said) = ask("mdir -i {} ::", &image) {
        assert!(said.contains("is CIDATA"), "{said}");
        assert!(said.contains("1234-ABCD"), "{said}");
        assert!(said.contains("2025-06-15  15:06"), "{said}");
    }
    if let Some(said) = run("blkid -p {}", &image) {
        let said = said.unwrap();
        assert!(said.contains("LABEL=\"CIDATA\"") && said.contains("TYPE=\"vfat\""), "{said}");
    }
}

#[test]
fn times_are_calendar_days() {
    let stamp = |epoch| {
        let Stamp { date, time } = Stamp::of(epoch);
        ((date >> 9) + 1980, date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2)
    };
    assert_eq!(stamp(0), (1980, 1, 1, 0, 0, 0));
    assert_eq!(stamp(951_782_399), (2000, 2, 28, 23, 59, 58));
    assert_eq!(stamp(951_782_400), (2000, 2, 29, 0, 0, 0));
    assert_eq!(stamp(1_735_689_599), (2024, 12, 31, 23, 59, 58));
    assert_eq!(stamp(i64::MAX), (2107, 12, 31, 23, 59, 58));
}

#[test]
fn equal_files_give_equal_bytes() {
    let bench = Bench::new();
    assert_eq!(
        format(&sample(&bench), &options(4 * MIB)).unwrap(),
        format(&sample(&bench), &options(4 * MIB)).unwrap()
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let bench = Bench::new();
    let mut files = sample(&bench);
    let error = format(&files, &options(MIB)).unwrap_err();
    assert!(error.to_string().contains("at least"), "{error}");
    files.insert("big".to_owned(), Data::Content(bench.content(&vec![1; 5 << 20])));
    let error = format(&files, &options(4 * MIB)).unwrap_err().to_string();
    let needed: u64 = error.split(' ').find_map(|word| word.parse().ok()).unwrap();
    made(&bench, &files, needed);
    for (label, path) in
        [("lower", "a"), ("", "a"), ("TWELVE-CHARS", "a"), ("FINE", "a:b"), ("FINE", "a/"), ("FINE", "user-data/x")]
    {
        let mut files = sample(&bench);
        files.insert(path.to_owned(), bytes("x"));
        let options = Options { label: label.to_owned(), ..options(4 * MIB) };
        assert!(format(&files, &options).is_err(), "{label:?} {path:?}");
    }
}
