//! The same calls against a registry that others wrote.

use peelfs_registry::{
    ClientCertificate, ClientConfiguration, ErrorKind, HostSettings, ImageReference, Target, resolve,
};
use serde_json::json;

use super::{client, client_with, content, streamed};
use crate::support::docker_registry::{DockerRegistry, Options, certificates};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn an_image_is_resolved_and_its_blobs_are_read_in_parts() {
    let Some(registry) = DockerRegistry::start(Options::default()) else { return };
    let layer = content(3_000_000);
    let layer_digest = registry.push_blob("some/name", &layer);
    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    let config_digest = registry.push_blob("some/name", config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest.to_string(),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": layer_digest.to_string(),
            "size": layer.len(),
            "annotations": {"key": "value"},
        }],
    });
    let manifest_digest =
        registry.push_manifest("some/name", "tag", MANIFEST, manifest.to_string().as_bytes());

    let client = client();
    let reference: ImageReference = format!("{}/some/name:tag", registry.url_host()).parse().unwrap();
    let repository = client.repository(&reference).unwrap();
    let platform = "linux/amd64".parse().unwrap();
    let resolved = resolve(&repository, &reference.target(), &platform).await.unwrap();
    assert_eq!(*resolved.manifest_digest(), manifest_digest);
    assert_eq!(resolved.layers[0].annotations["key"], "value");
    assert_eq!(&repository.small_blob(&resolved.config, 1 << 20).await.unwrap()[..], config);

    let blob = repository.blob_of(&resolved.layers[0]);
    for range in [0..1, 1..2, 999_999..2_000_001, 2_999_999..3_000_000, 0..3_000_000, 5..5] {
        let bytes = blob.read(range.clone()).await.unwrap();
        assert_eq!(bytes, layer[range.start as usize..range.end as usize], "{range:?}");
    }
    assert!(blob.ranges_work());
    assert_eq!(streamed(&blob, 0).await.unwrap(), layer);
    assert_eq!(streamed(&blob, 2_500_000).await.unwrap(), layer[2_500_000..]);

    let by_digest = Target::Digest(manifest_digest);
    assert_eq!(repository.manifest(&by_digest).await.unwrap().bytes, manifest.to_string().as_bytes());
    let missing = repository.manifest(&Target::Tag("missing".to_owned())).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    for part in ["missing", "some/name", registry.url_host()] {
        assert!(missing.to_string().contains(part), "{missing}");
    }
}

#[tokio::test]
async fn a_password_from_a_credential_file_is_accepted() {
    let Some(registry) = DockerRegistry::start(Options { password: true, ..Options::default() }) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("auth.json");
    let reference: ImageReference = format!("{}/name:tag", registry.url_host()).parse().unwrap();
    let target = reference.target();
    // `peel:secret` and `peel:wrong`, from the `base64` tool.
    for (auth, expected) in [
        (Some("cGVlbDpzZWNyZXQ="), ErrorKind::NotFound),
        (Some("cGVlbDp3cm9uZw=="), ErrorKind::Unauthorized),
        (None, ErrorKind::Unauthorized),
    ] {
        let auths = auth.map(|auth| json!({ registry.url_host(): { "auth": auth } })).unwrap_or(json!({}));
        std::fs::write(&file, json!({ "auths": auths }).to_string()).unwrap();
        let configuration =
            ClientConfiguration { credential_files: vec![file.clone()], ..ClientConfiguration::default() };
        let repository = client_with(configuration).repository(&reference).unwrap();
        let error = repository.manifest(&target).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{auth:?}: {error:?}");
    }
}

#[tokio::test]
async fn tls_trusts_the_authority_given_for_a_host_and_shows_it_our_certificate() {
    let Some(registry) = DockerRegistry::start(Options { tls: true, ..Options::default() }) else { return };
    let certificates = certificates();
    let authorities = vec![certificates.join("ca.crt")];
    let client_certificate = ClientCertificate {
        certificate: certificates.join("client.cert"),
        key: certificates.join("client.key"),
    };
    let settings =
        |authorities: &[std::path::PathBuf], certificate: Option<&ClientCertificate>| HostSettings {
            certificate_authorities: authorities.to_vec(),
            client_certificate: certificate.cloned(),
            ..HostSettings::default()
        };
    let host = registry.url_host();
    let reference: ImageReference = format!("{host}/name:tag").parse().unwrap();
    let configured = |settings: HostSettings| ClientConfiguration {
        hosts: [(host.to_owned(), settings)].into(),
        ..ClientConfiguration::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let host_directory = directory.path().join(host);
    std::fs::create_dir(&host_directory).unwrap();
    for name in ["ca.crt", "client.cert", "client.key"] {
        std::fs::copy(certificates.join(name), host_directory.join(name)).unwrap();
    }
    let from_directory = ClientConfiguration {
        certificate_directories: vec![directory.path().to_owned()],
        ..ClientConfiguration::default()
    };
    for (what, configuration, expected) in [
        ("both", configured(settings(&authorities, Some(&client_certificate))), [ErrorKind::NotFound; 2]),
        ("both, from certs.d", from_directory, [ErrorKind::NotFound; 2]),
        // In TLS 1.3 the server refuses after the handshake; its alert may be lost with the connection.
        (
            "no certificate of ours",
            configured(settings(&authorities, None)),
            [ErrorKind::Unreachable, ErrorKind::BadResponse],
        ),
        ("no authority", configured(settings(&[], Some(&client_certificate))), [ErrorKind::Unreachable; 2]),
    ] {
        let repository = client_with(configuration).repository(&reference).unwrap();
        let error = repository.manifest(&reference.target()).await.unwrap_err();
        assert!(expected.contains(&error.kind()), "{what}: {error:?}");
    }
}
