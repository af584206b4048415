//! Promise: a registry that is not there, refuses, lies or goes away is told of, and what it sends is never taken for the image.

use super::*;

#[test]
fn mounting_from_where_nothing_is_says_so() {
    let peel = Peel::new();
    refused(&peel, "no-such-host.invalid:5000/name:tag", UNREACHABLE, &["no-such-host.invalid"]);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    refused(&peel, &format!("{closed}/name:tag"), UNREACHABLE, &["refused"]);
    let served = Served::image(Form::GZIP);
    let host = served.registry.url_host();
    refused(&peel, &format!("{host}/some/name:other"), NOT_FOUND, &[]);
    refused(&peel, &format!("{host}/other/name:test"), NOT_FOUND, &[]);
    refused(&peel, &format!("{host}/some/name@sha256:{}", "0".repeat(64)), NOT_FOUND, &[]);
    let mut layout = Layout::create(peel.scratch().join("layout"));
    refused(&peel, &layout.reference("missing"), NOT_FOUND, &[]);
    refused(&peel, "oci:/no/such/layout:tag", NOT_FOUND, &[]);
    layout.image("test", &[layer()], Form::GZIP);
    let digest = layout.manifest("test")["layers"][0]["digest"].as_str().unwrap().to_owned();
    fs::remove_file(layout.blob_path(&digest)).unwrap();
    refused(&peel, &layout.reference("test"), NOT_FOUND, &[&digest]);
    still_works(&peel);
}

#[test]
fn mounting_with_wrong_credentials_says_so_and_does_not_show_them() {
    let served = Served::image(Form::GZIP);
    let login = |login: &str| Authentication::Token {
        login: Some(login.to_owned()),
        identity_token: None,
        uses: usize::MAX,
        realm: None,
    };
    for authentication in [Authentication::Basic("user:right".to_owned()), login("user:right")] {
        served.registry.require(authentication);
        let peel = Peel::new();
        let host = served.registry.url_host();
        refused(&peel, &served.reference, UNAUTHORIZED, &[&host]);
        fs::create_dir(peel.home().join(".docker")).unwrap();
        // base64 of user:wrong-secret and of user:right
        for (encoded, code) in [("dXNlcjp3cm9uZy1zZWNyZXQ=", UNAUTHORIZED), ("dXNlcjpyaWdodA==", 0)] {
            let configuration = json!({ "auths": { host.clone(): { "auth": encoded } } });
            fs::write(peel.home().join(".docker/config.json"), configuration.to_string()).unwrap();
            if code == 0 {
                peel.mount(&served.reference).unmount();
                continue;
            }
            let outcome = refused(&peel, &served.reference, code, &[&host]);
            assert!(
                !outcome.stderr.contains("wrong-secret") && !outcome.stderr.contains(encoded),
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn mounting_what_does_not_match_its_digest_is_refused() {
    for form in [Form::GZIP, Form::ZSTD, Form::Tar, Form::Estargz(SMALL_CHUNKS)] {
        let served = Served::image(form);
        let peel = Peel::new();
        let (host, layer, config) =
            (served.registry.url_host(), served.layer_digest(), served.config_digest());
        for (path, named) in [("manifests/", None), (&config, Some(&config)), (&layer, Some(&layer))] {
            // Of a lazy layer this is a chunk that mounting does not look at.
            if form == Form::Estargz(SMALL_CHUNKS) && path == layer {
                continue;
            }
            served.registry.set_fault(path, Fault::WrongBytes);
            let named: Vec<&str> = named.map(String::as_str).into_iter().chain([host.as_str()]).collect();
            refused(&peel, &served.reference, WRONG_CONTENT, &named);
            served.registry.clear_faults();
        }
        still_works(&peel);
    }
    // A manifest that was asked for by digest.
    let served = Served::image(Form::GZIP);
    let peel = Peel::new();
    let digest = served.layout.descriptor("test")["digest"].as_str().unwrap().to_owned();
    served.registry.set_fault("manifests/", Fault::WrongBytes);
    let reference = format!("{}/some/name@{digest}", served.registry.url_host());
    refused(&peel, &reference, WRONG_CONTENT, &[&digest]);
}

#[test]
fn mounting_while_the_registry_breaks_the_protocol_gives_the_image_or_an_error() {
    let faults = [
        Fault::IgnoreRange,
        Fault::Status(416),
        Fault::Status(501),
        Fault::Status(400),
        Fault::Status(403),
        Fault::WrongContentRange,
        Fault::NoContentRange,
        Fault::CutAfter(1000),
        Fault::ShortBody(1000),
        Fault::LongBody(1000),
        Fault::WrongLength(1000),
        Fault::ContentEncoding,
        Fault::RedirectTo("http://127.0.0.1:1/nowhere".to_owned()),
        Fault::RedirectTo("file:///etc/passwd".to_owned()),
        Fault::Close,
    ];
    std::thread::scope(|scope| {
        for form in [Form::GZIP, Form::Estargz(SMALL_CHUNKS)] {
            for fault in &faults {
                scope.spawn(move || gives_the_image_or_an_error(form, fault));
            }
        }
    });
}

fn gives_the_image_or_an_error(form: Form, fault: &Fault) {
    let served = Served::image(form);
    let peel = Peel::new();
    served.registry.set_fault(&served.layer_digest(), fault.clone());
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &served.reference, point.to_str().unwrap(), "--read-timeout", "2"]);
    if outcome.code == Some(0) {
        for (path, expected) in [("large", noise(3 << 20).to_vec()), ("small", b"small".to_vec())] {
            match fs::read(point.join(path)) {
                Ok(bytes) => assert!(bytes == expected, "wrong bytes of {path} with {fault:?}"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{fault:?}"),
            }
        }
        served.registry.clear_faults();
        // As soon as the registry behaves, so does the mount.
        assert!(fs::read(point.join("large")).unwrap() == noise(3 << 20).to_vec(), "{fault:?}");
    } else {
        let named = [served.layer_digest(), served.registry.url_host(), served.reference.clone()];
        assert!(outcome.code.is_some() && !outcome.stderr.contains("panicked"), "{fault:?}: {outcome:?}");
        for name in named {
            assert!(outcome.stderr.contains(&name), "{fault:?}: {name} is not named: {}", outcome.stderr);
        }
        assert!(!is_mount_point(&point));
        served.registry.clear_faults();
        peel.mount(&served.reference).unmount();
    }
}

#[test]
fn reading_a_mount_fails_while_the_registry_is_gone_and_works_when_it_is_back() {
    let mut served = Served::image(Form::Estargz(SMALL_CHUNKS));
    let peel = Peel::new();
    // Longer than the longest wait between two attempts, or a reader who joins another's fetch could miss the registry's return.
    let mount = peel.mount_with(&served.reference, &["--read-timeout", "6"]);
    let file = fs::File::open(mount.join("large")).unwrap();
    let read = |offset: u64| {
        let mut bytes = vec![0; 1000];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    let expected = noise(3 << 20).to_vec();
    assert!(read(0).unwrap() == expected[..1000]);

    served.registry.down();
    assert_eq!(read((2 << 20) + 500).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(read(0).unwrap() == expected[..1000], "what is here is still read");
    served.registry.up();
    assert!(read((2 << 20) + 500).unwrap() == expected[(2 << 20) + 500..][..1000]);

    // It answers, but never to the end.
    served.registry.set_fault("blobs/", Fault::StallAfter(10));
    assert_eq!(fs::read(mount.join("small")).unwrap_err().raw_os_error(), Some(libc::EIO));
    served.registry.clear_faults();
    served.registry.release();
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
}
