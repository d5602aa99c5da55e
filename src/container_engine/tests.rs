use super::*;
use crate::{error::report, progress::Style};
use std::{
    fs,
    io::{BufRead, BufReader, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::PathBuf,
    thread,
};

fn silent() -> Progress {
    Progress::new(Style::Silent)
}

/// What a false engine does with an archive.
#[derive(Clone)]
enum Fate {
    /// Reads all of it and answers with this status and body.
    Answer(&'static str, &'static str),
    /// Closes the connection after so many bytes.
    CutOff(u64),
    /// Promises an answer and closes the connection in it.
    CutAnswer(&'static str),
}

const VERSION: &str =
    r#"{"Version":"20.10.24","ApiVersion":"1.41","Components":[{"Name":"Engine","Version":"20.10.24"}]}"#;
const PODMAN: &str =
    r#"{"Version":"4.3.1","ApiVersion":"1.41","Components":[{"Name":"Podman Engine","Version":"4.3.1"}]}"#;
const LOADED: &str = "{\"stream\":\"Loaded image: demo:1\\n\"}\n";

/// A false engine on a socket in a new folder; it ends with the test's process.
fn false_engine(version: &'static str, fate: Fate) -> (tempfile::TempDir, Address) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that went away is its own business.
            let _ = serve(stream.unwrap(), version, fate.clone());
        }
    });
    (folder, Address::Unix(socket))
}

fn serve(stream: UnixStream, version: &str, fate: Fate) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::from("-");
    while !header.trim().is_empty() {
        header.clear();
        reader.read_line(&mut header)?;
    }
    if request.contains("/version") {
        return answer(&stream, "200 OK", version);
    }
    if request.contains("/json") {
        return answer(&stream, "200 OK", r#"{"Id":"sha256:1234"}"#);
    }
    match fate {
        Fate::Answer(status, body) => {
            drain_chunks(&mut reader)?;
            answer(&stream, status, body)
        }
        Fate::CutOff(bytes) => io::copy(&mut reader.take(bytes), &mut io::sink()).map(drop),
        Fate::CutAnswer(part) => {
            drain_chunks(&mut reader)?;
            write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{part}")
        }
    }
}

fn answer(mut stream: &UnixStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Reads a body sent in chunks (RFC 9112, 7.1) to its end.
fn drain_chunks(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        io::copy(&mut reader.take(size + 2), &mut io::sink())?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn archive(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("image.tar");
    fs::write(&path, vec![7; 3 << 20]).unwrap();
    path
}

fn load(version: &'static str, fate: Fate) -> Result<Vec<LoadedImage>> {
    let (folder, address) = false_engine(version, fate);
    Engine::first_of(vec![address]).unwrap().load(&archive(&folder), &silent())
}

/// The error's report, without what differs from run to run.
fn said(error: &anyhow::Error) -> String {
    let folder = std::env::temp_dir();
    let mut text = report(error);
    while let Some(at) = text.find(&*folder.join(".tmp").to_string_lossy()) {
        let end = text[at..].find(".tmp").map(|dot| at + dot + ".tmpXXXXXX".len()).unwrap();
        text.replace_range(at..end, "FOLDER");
    }
    text
}

#[test]
fn an_engine_says_what_it_is_and_what_it_has_loaded() {
    let images = load(VERSION, Fate::Answer("200 OK", LOADED)).unwrap();
    assert_eq!(images, [LoadedImage { reference: "demo:1".into(), id: "sha256:1234".into() }]);
    let (_folder, address) = false_engine(PODMAN, Fate::CutOff(0));
    let engine = Engine::first_of(vec![address.clone()]).unwrap();
    assert_eq!((engine.kind(), engine.to_string()), (Kind::Podman, "Podman 4.3.1".to_owned()));
    assert_eq!(engine.address(), address.to_string());
    assert!(engine.reads_zstd());
    let (_folder, address) = false_engine(VERSION, Fate::CutOff(0));
    assert!(!Engine::first_of(vec![address]).unwrap().reads_zstd(), "Docker 20.10 does not");
}

#[test]
fn a_refused_archive_is_told_in_the_engines_words() {
    let error =
        load(VERSION, Fate::Answer("500 Internal Server Error", r#"{"message":"invalid diffID"}"#)).unwrap_err();
    insta::assert_snapshot!(said(&error), @r#"
    error: loading FOLDER/image.tar into Docker 20.10.24
      because: Docker refused: invalid diffID
    "#);
    let error =
        load(PODMAN, Fate::Answer("200 OK", "{\"errorDetail\":{\"message\":\"no space\"},\"error\":\"no space\"}\n"))
            .unwrap_err();
    insta::assert_snapshot!(said(&error), @r#"
    error: loading FOLDER/image.tar into Podman 4.3.1
      because: Podman refused: no space
    "#);
}

#[test]
fn a_connection_that_is_cut_off_is_told_as_such() {
    let fates = [
        Fate::CutOff(0),
        Fate::CutOff(1 << 20),
        Fate::CutAnswer(""),
        Fate::CutAnswer("{\"status\":\"Loading layer\"}\n"),
        Fate::Answer("200 OK", ""),
    ];
    for fate in fates {
        let error = load(VERSION, fate).unwrap_err();
        let text = said(&error);
        assert!(text.contains("because: Docker closed the connection\n"), "{text}");
        assert!(text.contains("hint: check whether the engine at "), "{text}");
    }
}

#[test]
fn where_no_engine_answers_every_place_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let deserted = folder.path().join("deserted.sock");
    drop(UnixListener::bind(&deserted).unwrap());
    let (_folder, strange) = false_engine("<html>", Fate::CutOff(0));
    let addresses = vec![
        Address::Unix("/no/such.sock".into()),
        Address::Unix(deserted),
        strange,
        Address::Tcp("tcp://127.0.0.1:1".into()),
    ];
    let error = Engine::first_of(addresses).unwrap_err();
    insta::assert_snapshot!(said(&error), @r#"
    error: no container engine answers
    unix:///no/such.sock: no such socket
    unix://FOLDER/deserted.sock: nobody listens
    unix://FOLDER/engine.sock: Failed to deserialize JSON: expected value at line 1 column 1
    tcp://127.0.0.1:1: client error (Connect): tcp connect error: Connection refused (os error 111)

    hint: start one: `systemctl start docker`, or `systemctl --user start podman.socket`; or name its socket in DOCKER_HOST
    "#);
}

#[test]
fn a_socket_that_may_not_be_used_is_told_with_the_way_in() {
    let denied = Address::Unix("/var/run/docker.sock".into());
    let tried = [(denied, io::ErrorKind::PermissionDenied.into())];
    insta::assert_snapshot!(said(&find::none_answers(&tried).into()), @r#"
    error: no container engine answers
    unix:///var/run/docker.sock: permission denied

    hint: you may not use /var/run/docker.sock: join the group that owns it (`usermod -aG docker USER`, then log in again), or use your own Podman (`systemctl --user start podman.socket`)
    "#);

    let (folder, address) = false_engine(VERSION, Fate::CutOff(0));
    fs::set_permissions(folder.path().join("engine.sock"), fs::Permissions::from_mode(0o000)).unwrap();
    if crate::testing::require_ordinary_user() {
        assert!(report(&Engine::first_of(vec![address]).unwrap_err()).contains("permission denied"));
    }
}

#[test]
fn a_missing_archive_is_an_error() {
    let (_folder, address) = false_engine(VERSION, Fate::CutOff(0));
    let error = Engine::first_of(vec![address]).unwrap().load(Path::new("/no/such.tar"), &silent()).unwrap_err();
    assert_eq!(error.to_string(), "opening /no/such.tar");
}
