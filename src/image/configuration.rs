//! An image's config, read if there is one way to read it only (OCI image specification, "Image Configuration"): a program that takes
//! `ROOTFS` for `rootfs` holds the layers against other diff IDs than we do. No key occurs twice, nor in another case.

use oci_spec::image::ImageConfiguration;
use peelfs_registry::odd_keys::Shape;

static CONFIGURATION: Shape = Shape {
    fields: &[
        "created",
        "author",
        "architecture",
        "os",
        "os.version",
        "os.features",
        "variant",
        "config",
        "rootfs",
        "history",
    ],
    inside: &[("config", &SETTINGS), ("rootfs", &ROOT), ("history", &HISTORY)],
};
static ROOT: Shape = Shape { fields: &["type", "diff_ids"], inside: &[] };
static HISTORY: Shape =
    Shape { fields: &["created", "author", "created_by", "comment", "empty_layer"], inside: &[] };
static SETTINGS: Shape = Shape {
    fields: &[
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Labels",
        "StopSignal",
        "ArgsEscaped",
    ],
    inside: &[],
};

/// Reads a config, or says why it cannot be used.
pub(super) fn parse(json: &[u8]) -> Result<ImageConfiguration, String> {
    let configuration: ImageConfiguration =
        serde_json::from_slice(json).map_err(|error| error.to_string())?;
    match CONFIGURATION.odd_key(json) {
        Ok(None) => Ok(configuration),
        Ok(Some(key)) => Err(format!("it has the key {key:?}, which some programs read as another field")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn config(more: &str, root: &str, settings: &str, history: &str) -> String {
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["a=b"]{settings}}},
            "rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]{root}}},"history":[{{"created_by":"x"{history}}}]{more}}}"#
        )
    }

    #[test]
    fn a_config_that_others_may_read_otherwise_is_refused() {
        let root = format!(r#","ROOTFS":{{"type":"layers","diff_ids":["{DIGEST}"]}}"#);
        let twice = root.to_lowercase();
        let diff_ids = format!(r#","DIFF_IDS":["{DIGEST}"]"#);
        for (config, named) in [
            (config(&root, "", "", ""), "ROOTFS"),
            (config(&twice, "", "", ""), "rootfs"),
            (config(r#","Config":{}"#, "", "", ""), "Config"),
            (config(r#","Architecture":"arm64""#, "", "", ""), "Architecture"),
            (config(r#","OS":"windows""#, "", "", ""), "OS"),
            (config(r#","o\u017f":"windows""#, "", "", ""), "oſ"),
            (config(r#","hi\u017ftory":[]"#, "", "", ""), "hiſtory"),
            (config("", &diff_ids, "", ""), "DIFF_IDS"),
            (config("", &diff_ids.to_lowercase(), "", ""), "diff_ids"),
            (config("", r#","Type":"layers""#, "", ""), "Type"),
            (config("", "", r#","env":["PATH=/evil"]"#, ""), "env"),
            (config("", "", r#","wor\u212aingDir":"/""#, ""), "wor\u{212a}ingDir"),
            (config("", "", "", r#","Empty_Layer":true"#), "Empty_Layer"),
        ] {
            let error = parse(config.as_bytes()).expect_err(named);
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn keys_that_nobody_reads_as_a_field_are_passed_over() {
        let labels = r#","Labels":{"env":"x","Env":"y"},"Hostname":"","OnBuild":null,"created":"x""#;
        let more = r#","container_config":{"env":[],"Env":[]},"docker_version":"1","User":"x","id":1,"size":[true,-1,1.5]"#;
        parse(config(more, "", labels, "").as_bytes()).unwrap();
        parse(config(r#","author":null,"created":null"#, "", "", "").as_bytes()).unwrap();
    }
}
