//! Hosts that are missing, slow, busy or gone: a clear error in time, and no error when they come back.

use std::time::Duration;

use peelfs_registry::{ClientConfiguration, ErrorKind, HostSettings, ImageReference, Proxies, Timeouts};

use super::{chain, client, client_with, content, hasty_client};
use crate::support::docker_registry::{DockerRegistry, Options, certificates};
use crate::support::registry::{FakeRegistry, Fault, Kind};

#[tokio::test]
async fn a_busy_host_is_asked_again_and_a_refusal_is_final() {
    for (fault, requests, expected) in [
        (Fault::Status(503), 3, None),
        (Fault::Status(500), 3, None),
        (Fault::Status(408), 3, None),
        (Fault::RetryAfter(429, "0".to_owned()), 3, None),
        (Fault::RetryAfter(503, "Thu, 01 Jan 1970 00:00:00 GMT".to_owned()), 3, None),
        (Fault::Close, 3, None),
        (Fault::CutAfter(3), 3, None),
        (Fault::Status(400), 1, Some(ErrorKind::BadResponse)),
        (Fault::Status(401), 1, Some(ErrorKind::Unauthorized)),
        (Fault::Status(403), 1, Some(ErrorKind::Unauthorized)),
        (Fault::Status(404), 1, Some(ErrorKind::NotFound)),
        (Fault::RetryAfter(429, "86400".to_owned()), 1, Some(ErrorKind::RateLimited)),
        (Fault::ContentType("text/html".to_owned()), 1, Some(ErrorKind::BadDocument)),
    ] {
        let registry = FakeRegistry::start();
        registry.put_image("name", "tag", &[]);
        registry.set_fault_times("manifests/", fault.clone(), 2);
        let reference = registry.reference("name", "tag");
        let client = client();
        let result = client.repository(&reference).unwrap().manifest(&reference.target()).await;
        assert_eq!(result.as_ref().err().map(|error| error.kind()), expected, "{fault:?}: {result:?}");
        // HTTP clients may themselves repeat a GET whose kept-alive connection was closed without an answer.
        assert_eq!(registry.counters().manifests, requests, "{fault:?}");
        assert_eq!(client.statistics().retries, requests - 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_host_that_stays_busy_is_given_up_at_the_deadline() {
    let registry = FakeRegistry::start();
    registry.put_image("name", "tag", &[]);
    registry.set_fault("manifests/", Fault::Status(503));
    let reference = registry.reference("name", "tag");
    let error =
        hasty_client().repository(&reference).unwrap().manifest(&reference.target()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Server | ErrorKind::Timeout), "{error:?}");
    assert!(registry.counters().manifests > 1);
}

#[tokio::test]
async fn a_host_that_stalls_is_left_after_the_idle_time() {
    let registry = FakeRegistry::start();
    let bytes = content(200_000);
    let digest = registry.put_blob(bytes.as_slice());
    let reference = registry.reference("name", "tag");
    let blob = hasty_client().repository(&reference).unwrap().blob(digest, 200_000);
    // One that stalls for ever, before or in the middle of its answer, while others are answered.
    for fault in [Fault::Stall, Fault::StallAfter(70_000)] {
        registry.set_fault_times("blobs/", fault.clone(), 1);
        assert_eq!(blob.read(0..200_000).await.unwrap(), bytes, "{fault:?}");
    }
    registry.set_fault("blobs/", Fault::Stall);
    let error = blob.read(0..10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    registry.clear_faults();
    registry.release();
    assert_eq!(blob.read(0..10).await.unwrap(), bytes[..10]);
}

#[tokio::test]
async fn a_registry_that_went_away_may_come_back() {
    let mut registry = FakeRegistry::start();
    let bytes = content(1000);
    let digest = registry.put_blob(bytes.as_slice());
    registry.put_image("name", "tag", &[]);
    let reference = registry.reference("name", "tag");
    let client = hasty_client();
    let repository = client.repository(&reference).unwrap();
    let blob = repository.blob(digest, 1000);
    blob.read(0..10).await.unwrap();
    registry.down();
    let error = blob.read(10..20).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(error.to_string().contains(&registry.url_host()), "{error}");
    let error = repository.manifest(&reference.target()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(chain(&error).contains("refused"), "{}", chain(&error));
    registry.up();
    assert_eq!(blob.read(10..20).await.unwrap(), bytes[10..20]);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_reported_soon() {
    let reference: ImageReference = "no-such-host.invalid/name:tag".parse().unwrap();
    let configuration = ClientConfiguration { plain_http: true, ..ClientConfiguration::default() };
    let repository = client_with(configuration).repository(&reference).unwrap();
    let error = repository.manifest(&reference.target()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
}

#[tokio::test]
async fn tls_to_a_plain_http_host_hints_at_the_cause() {
    // The fake hangs up on what is no HTTP; the real one answers it in plain text.
    let fake = FakeRegistry::start();
    let real = DockerRegistry::start(Options::default());
    for host in
        [Some(fake.url_host()), real.as_ref().map(|real| real.url_host().to_owned())].into_iter().flatten()
    {
        let reference: ImageReference = format!("{host}/name:tag").parse().unwrap();
        // Settings for a loopback host mean that it speaks TLS.
        let settings = HostSettings {
            certificate_authorities: vec![certificates().join("ca.crt")],
            ..HostSettings::default()
        };
        let configuration =
            ClientConfiguration { hosts: [(host, settings)].into(), ..ClientConfiguration::default() };
        let repository = client_with(configuration).repository(&reference).unwrap();
        let error = repository.manifest(&reference.target()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--plain-http")), "{}", chain(&error));
    }
}

#[tokio::test]
async fn redirects_end_and_never_lead_to_credentials_or_nowhere() {
    let registry = FakeRegistry::start();
    registry.put_image("name", "tag", &[]);
    let reference = registry.reference("name", "tag");
    let itself = format!("http://{}/v2/name/manifests/tag", registry.url_host());
    for location in [itself.as_str(), "", "ftp://host/", "http://user:password@127.0.0.1:1/", "http://"] {
        registry.reset_counters();
        registry.set_fault("manifests/", Fault::RedirectTo(location.to_owned()));
        let error = client().repository(&reference).unwrap().manifest(&reference.target()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{location}: {error:?}");
        assert!(registry.counters().manifests <= 33, "{location}");
        registry.clear_faults();
    }
}

#[tokio::test]
async fn what_a_host_says_is_shown_without_its_control_characters() {
    let registry = FakeRegistry::start();
    let reference = registry.reference("name", "missing");
    let error = client().repository(&reference).unwrap().manifest(&reference.target()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
    assert!(!error.to_string().contains(char::is_control), "{error}");
}

#[test]
fn a_malformed_proxy_is_refused_without_showing_its_password() {
    let proxies = Proxies { https: Some("http://user:secret@[bad".to_owned()), ..Proxies::default() };
    let configuration =
        ClientConfiguration { proxies, timeouts: Timeouts::default(), ..ClientConfiguration::default() };
    let error = peelfs_registry::Client::new(configuration).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn a_proxy_is_used_for_other_hosts_and_never_for_loopback() {
    // The fake plays the proxy: it is asked for a whole URL of a host that is not its own, which it reports.
    let registry = FakeRegistry::start();
    registry.put_image("name", "tag", &[]);
    let proxies = Proxies { http: Some(format!("http://{}", registry.url_host())), ..Proxies::default() };
    let configuration = ClientConfiguration {
        proxies,
        plain_http: true,
        timeouts: Timeouts { operation: Duration::from_secs(5), ..Timeouts::default() },
        ..ClientConfiguration::default()
    };
    let client = client_with(configuration);
    let reference: ImageReference = "registry.invalid/name:tag".parse().unwrap();
    let _ = client.repository(&reference).unwrap().manifest(&reference.target()).await;
    let violations = registry.take_violations();
    assert!(violations.iter().any(|violation| violation.contains("registry.invalid")), "{violations:?}");
    let local = registry.reference("name", "tag");
    client.repository(&local).unwrap().manifest(&local.target()).await.unwrap();
    assert_eq!(registry.requests().last().map(|request| request.kind), Some(Kind::Manifest));
}
