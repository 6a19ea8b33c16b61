//! Reads a pod from what the Helm chart renders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use yaml_rust2::{Yaml, YamlLoader};

/// The folder of the mounted secrets in the chart.
pub(super) const MOUNTED: &str = "/etc/outbox-relay";

/// The contents of Secrets and ConfigMaps, by name and key.
#[derive(Debug, Clone, Default)]
pub(super) struct Cluster(BTreeMap<(String, String), String>);

impl Cluster {
    /// Adds a key of a Secret or ConfigMap.
    pub(super) fn with(mut self, name: &str, key: &str, value: impl Into<String>) -> Self {
        self.0.insert((name.to_owned(), key.to_owned()), value.into());
        self
    }
}

/// A pod with one container.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    spec: Yaml,
    container: Yaml,
    /// The variables of the container.
    pub(super) environment: BTreeMap<String, String>,
}

impl Pod {
    /// Reads the pod of the only object of this kind in a golden file.
    pub(super) fn of(golden: &str, kind: &str) -> anyhow::Result<Self> {
        let path = format!("deploy/helm/golden/{golden}.yaml");
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).context(path)?;
        let objects = YamlLoader::load_from_str(&text)?;
        let mut of_kind = objects.into_iter().filter(|object| object["kind"].as_str() == Some(kind));
        let object = of_kind.next().with_context(|| format!("no {kind} in {golden}"))?;
        let spec = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        let [container] = list(&spec["containers"])? else { anyhow::bail!("one container, not {spec:?}") };
        let mut environment = BTreeMap::new();
        for variable in list(&container["env"])? {
            environment.insert(text_of(&variable["name"])?, text_of(&variable["value"])?);
        }
        Ok(Self { spec: spec.clone(), container: container.clone(), environment })
    }

    /// Replaces a server's address, which the golden file has from an example. A pod without the variable stays as it is.
    pub(super) fn at(mut self, variable: &str, address: &str) -> Self {
        if let Some(value) = self.environment.get_mut(variable) {
            address.clone_into(value);
        }
        self
    }

    /// Returns the arguments of the container. The image has the command.
    pub(super) fn arguments(&self) -> anyhow::Result<Vec<String>> {
        ensure!(self.container["command"].is_badvalue(), "the image's entry point is replaced");
        list(&self.container["args"])?.iter().map(text_of).collect()
    }

    /// Returns the command of a probe; empty if there is none.
    pub(super) fn probe(&self, name: &str) -> Vec<String> {
        let command = list(&self.container[name]["exec"]["command"]).unwrap_or_default();
        command.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    }

    /// Returns the user and the group of the process.
    pub(super) fn user(&self) -> anyhow::Result<(i64, i64)> {
        let context = &self.spec["securityContext"];
        let both = context["runAsUser"].as_i64().zip(context["runAsGroup"].as_i64());
        both.context("no user")
    }

    /// Expects the restrictions that [`super::container::Node`] imposes.
    pub(super) fn is_restricted(&self) -> anyhow::Result<()> {
        let (pod, own) = (&self.spec["securityContext"], &self.container["securityContext"]);
        ensure!(own["readOnlyRootFilesystem"].as_bool() == Some(true), "{own:?}");
        ensure!(own["allowPrivilegeEscalation"].as_bool() == Some(false), "{own:?}");
        ensure!(own["capabilities"]["drop"][0].as_str() == Some("ALL"), "{own:?}");
        ensure!(
            pod["fsGroup"].as_i64() == Some(self.user()?.1),
            "the process is not of the group that reads the files"
        );
        Ok(())
    }

    /// Returns the mounted files by their names, and their mode.
    pub(super) fn files(&self, cluster: &Cluster) -> anyhow::Result<(BTreeMap<String, String>, u32)> {
        let volumes = list(&self.spec["volumes"])?;
        let volume = volumes.iter().find(|volume| volume["name"].as_str() == Some("settings"));
        let projected = &volume.context("no volume")?["projected"];
        let mounts = list(&self.container["volumeMounts"])?;
        let mount = mounts.iter().find(|mount| mount["name"].as_str() == Some("settings")).context("no mount")?;
        ensure!(mount["mountPath"].as_str() == Some(MOUNTED), "{mount:?}");
        let mut files = BTreeMap::new();
        for source in list(&projected["sources"])? {
            let source = [&source["secret"], &source["configMap"]].into_iter().find(|kind| !kind.is_badvalue());
            let source = source.context("neither Secret nor ConfigMap")?;
            for item in list(&source["items"])? {
                let from = (text_of(&source["name"])?, text_of(&item["key"])?);
                let content = cluster.0.get(&from).with_context(|| format!("{from:?} does not exist"))?;
                files.insert(text_of(&item["path"])?, content.clone());
            }
        }
        let mode = projected["defaultMode"].as_i64().context("no mode")?;
        Ok((files, mode.try_into()?))
    }
}

fn list(yaml: &Yaml) -> anyhow::Result<&[Yaml]> {
    Ok(yaml.as_vec().with_context(|| format!("no list: {yaml:?}"))?)
}

fn text_of(yaml: &Yaml) -> anyhow::Result<String> {
    Ok(yaml.as_str().with_context(|| format!("no text: {yaml:?}"))?.to_owned())
}
