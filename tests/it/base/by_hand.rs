use super::debs::expand;
use pgha_image::{base::*, progress::*, sandbox::Sandbox, store::Store};
use std::{path::Path, time::*};

#[test]
#[ignore]
fn by_hand() {
    let var = |name: &str| std::env::var(name).unwrap();
    let store = Store::open(Path::new(&var("H_STORE"))).unwrap();
    let names = std::fs::read_to_string(var("H_SET")).unwrap();
    let began = Instant::now();
    let mut packages = Vec::new();
    for entry in std::fs::read_dir(var("H_DEBS")).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if file.ends_with(".deb")
            && names.lines().any(|name| file.trim_end_matches(".deb").split('_').next() == Some(name))
        {
            packages.push(expand(&store, &path));
        }
    }
    eprintln!("{} packages expanded {:?}", packages.len(), began.elapsed());
    let spec = BaseSpec {
        packages,
        skeleton: vec![SkeletonFile {
            path: "/etc/postgresql-common/createcluster.conf".parse().unwrap(),
            mode: 0o644,
            bytes: b"create_main_cluster = false\n".to_vec(),
        }],
        preseed: "man-db man-db/auto-update boolean false\n".into(),
        exclude: ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"]
            .map(Into::into)
            .into(),
        include: vec!["/usr/share/doc/*/copyright".into()],
        users: vec![User {
            name: "postgres".into(),
            uid: 700,
            group: "postgres".into(),
            groups: vec![],
            home: "/var/lib/postgresql".parse().unwrap(),
            shell: "/bin/bash".parse().unwrap(),
            comment: "PostgreSQL administrator".into(),
        }],
        groups: vec![Group { name: "postgres".into(), gid: 700 }],
        epoch: 1_790_000_000,
        limit: Duration::from_secs(300),
        place: if std::env::var("H_DISK").is_ok() { Place::Disk } else { Place::Auto },
    };
    let progress = Progress::new(Style::Plain);
    let sandbox = Sandbox::with_program(env!("CARGO_BIN_EXE_pgha-image"));
    let began = Instant::now();
    match build(&store, &progress, &sandbox, &[], &spec) {
        Ok((layer, known)) => eprintln!("{} {} known {known} {:?}", layer.tar, layer.size, began.elapsed()),
        Err(error) => panic!("{}", pgha_image::error::report(&error)),
    }
}
