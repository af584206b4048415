//! Promise: the URLs that a manifest names for a layer are an image author's word, and nobody is asked there unless the user allows
//! it. The registry's own blob comes first; what a foreign host gives is verified as all else is, and it never sees credentials.

use super::*;
use crate::support::image::{CONFIG, config_document};

const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
const NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
const ALLOW: &[&str] = &["--foreign-urls"];

/// A registry that lacks the only layer of its image, and another host that has it.
struct Foreign {
    registry: FakeRegistry,
    elsewhere: FakeRegistry,
    layer: String,
    reference: String,
    _directory: tempfile::TempDir,
}

impl Foreign {
    /// `urls` are made from the host's address and the layer's digest.
    fn image(form: Form, media_type: &str, urls: &dyn Fn(&str, &str) -> Vec<String>) -> Foreign {
        let (registry, elsewhere) = (FakeRegistry::start(), FakeRegistry::start());
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::create(directory.path());
        let encoded = layout.put_layer(&layer(), form);
        let config =
            layout.put_json(CONFIG, &config_document(std::slice::from_ref(&encoded), this_architecture()));
        let mut manifest = manifest_document(&config, std::slice::from_ref(&encoded));
        manifest["layers"][0]["mediaType"] = media_type.into();
        manifest["layers"][0]["urls"] = urls(&elsewhere.url_host(), &encoded.digest).into();
        let descriptor = layout.put_json(MANIFEST, &manifest);
        layout.tag("test", &descriptor);
        let reference = layout.serve(&registry, "some/name", "test");
        elsewhere.put_blob_file(&layout.blob_path(&encoded.digest));
        registry.set_fault(&encoded.digest, Fault::Status(404));
        Foreign { registry, elsewhere, layer: encoded.digest, reference, _directory: directory }
    }

    /// The one URL that leads to the layer.
    fn good(host: &str, digest: &str) -> Vec<String> {
        vec![format!("http://{host}/v2/foreign/blobs/{digest}")]
    }
}

#[track_caller]
fn is_mounted(peel: &Peel, reference: &str, options: &[&str]) {
    let mount = peel.mount_with(reference, options);
    assert!(fs::read(mount.join("large")).unwrap() == noise(3 << 20).to_vec());
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
    mount.unmount();
}

#[test]
fn mounting_asks_no_foreign_host_without_permission() {
    for media_type in [FOREIGN, NONDISTRIBUTABLE, Form::GZIP.media_type()] {
        let image = Foreign::image(Form::GZIP, media_type, &Foreign::good);
        let (peel, host) = (Peel::new(), image.elsewhere.url_host());
        let named = [image.layer.as_str(), "foreign", &host, "--foreign-urls"];
        refused(&peel, &image.reference, NOT_FOUND, &named);
        assert!(image.elsewhere.requests().is_empty(), "{:?}", image.elsewhere.requests());
    }
}

#[test]
fn mounting_takes_the_blob_of_the_registry_before_a_foreign_one() {
    for options in [&[], ALLOW] {
        let image = Foreign::image(Form::GZIP, FOREIGN, &Foreign::good);
        image.registry.clear_faults();
        is_mounted(&Peel::new(), &image.reference, options);
        assert!(image.elsewhere.requests().is_empty(), "{:?}", image.elsewhere.requests());
    }
}

#[test]
fn mounting_with_permission_asks_the_foreign_hosts_in_order_and_shows_them_no_credentials() {
    let urls = |host: &str, digest: &str| {
        let missing = format!("http://{host}/v2/foreign/blobs/sha256:{}", "0".repeat(64));
        [vec!["ftp://127.0.0.1/layer".to_owned(), missing], Foreign::good(host, digest)].concat()
    };
    for (form, media_type) in [(Form::GZIP, FOREIGN), (Form::Estargz(SMALL_CHUNKS), NONDISTRIBUTABLE)] {
        let image = Foreign::image(form, media_type, &urls);
        image.registry.require(Authentication::Basic("user:right".to_owned()));
        let peel = Peel::new();
        fs::create_dir(peel.home().join(".docker")).unwrap();
        // base64 of user:right, for both hosts.
        let login = json!({ "auth": "dXNlcjpyaWdodA==" });
        let logins =
            json!({ "auths": { image.registry.url_host(): login, image.elsewhere.url_host(): login } });
        fs::write(peel.home().join(".docker/config.json"), logins.to_string()).unwrap();
        is_mounted(&peel, &image.reference, ALLOW);
        let requests = image.elsewhere.requests();
        assert_eq!(requests[0].status, 404, "the URLs are asked in their order");
        assert!(requests.iter().all(|request| request.header("authorization").is_none()), "{requests:?}");
    }
}

#[test]
fn mounting_what_a_foreign_host_gives_is_verified() {
    let image = Foreign::image(Form::GZIP, FOREIGN, &Foreign::good);
    image.elsewhere.set_fault("blobs/", Fault::WrongBytes);
    let peel = Peel::new();
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &image.reference, point.to_str().unwrap(), "--foreign-urls"]);
    is_an_error(&outcome, WRONG_CONTENT, &image.reference, &[&image.layer]);
    assert!(!is_mount_point(&point));
    still_works(&peel);
}

#[test]
fn mounting_follows_no_foreign_url_that_leads_into_this_machine_or_carries_credentials() {
    let urls = |host: &str, digest: &str| {
        vec![
            "file:///etc/passwd".to_owned(),
            format!("http://user:password@{host}/v2/foreign/blobs/{digest}"),
            "no URL".to_owned(),
            String::new(),
        ]
    };
    let image = Foreign::image(Form::GZIP, FOREIGN, &urls);
    let peel = Peel::new();
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &image.reference, point.to_str().unwrap(), "--foreign-urls"]);
    is_an_error(&outcome, NOT_FOUND, &image.reference, &[&image.layer, "foreign"]);
    assert!(!outcome.stderr.contains("password"), "{outcome:?}");
    assert!(image.elsewhere.requests().is_empty() && !is_mount_point(&point));
}
