//! Reads a container from what the Helm chart renders, or from the file for Compose.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use yaml_rust2::{Yaml, YamlLoader};

/// The contents of Secrets and ConfigMaps, by name and key.
#[derive(Debug, Clone, Default)]
pub(super) struct Cluster(BTreeMap<(String, String), String>);

impl Cluster {
    /// Adds a key of a Secret or ConfigMap.
    pub(super) fn with(mut self, name: &str, key: &str, value: impl Into<String>) -> Self {
        self.0.insert((name.to_owned(), key.to_owned()), value.into());
        self
    }

    /// Returns the contents of mounted files.
    pub(super) fn contents(&self, container: &Container) -> anyhow::Result<BTreeMap<String, String>> {
        let content = |(path, from): (&String, &(String, String))| {
            let content = self.0.get(from).with_context(|| format!("{from:?} does not exist"))?;
            Ok((path.clone(), content.clone()))
        };
        container.files.iter().map(content).collect()
    }
}

/// A container, restricted as [`super::node::Node`] restricts it.
#[derive(Debug, Clone)]
pub(super) struct Container {
    /// The arguments. The image has the command.
    pub(super) arguments: Vec<String>,
    /// The variables.
    pub(super) environment: BTreeMap<String, String>,
    /// The commands of probes, by their names.
    pub(super) probes: BTreeMap<String, Vec<String>>,
    /// The folder of the mounted files.
    pub(super) mounted: String,
    /// The mounted files, and where each comes from.
    files: BTreeMap<String, (String, String)>,
    /// The mode of the files.
    pub(super) mode: u32,
    /// The user of the process, and its group, which is that of the files.
    pub(super) user: u32,
}

impl Container {
    /// Reads the container of the only object of this kind in a golden file of the chart.
    pub(super) fn of_chart(golden: &str, kind: &str) -> anyhow::Result<Self> {
        let objects = read(&format!("deploy/helm/golden/{golden}.yaml"))?;
        let mut of_kind = objects.into_iter().filter(|object| object["kind"].as_str() == Some(kind));
        let object = of_kind.next().with_context(|| format!("no {kind} in {golden}"))?;
        let spec = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        let [own] = list(&spec["containers"])? else { anyhow::bail!("one container, not {spec:?}") };
        ensure!(own["command"].is_badvalue(), "the image's entry point is replaced");
        let (pod, context) = (&spec["securityContext"], &own["securityContext"]);
        ensure!(context["readOnlyRootFilesystem"].as_bool() == Some(true), "{context:?}");
        ensure!(context["allowPrivilegeEscalation"].as_bool() == Some(false), "{context:?}");
        ensure!(context["capabilities"]["drop"][0].as_str() == Some("ALL"), "{context:?}");
        let user = pod["runAsUser"].as_i64().context("no user")?;
        ensure!(["runAsGroup", "fsGroup"].iter().all(|group| pod[*group].as_i64() == Some(user)), "{pod:?}");
        let mut environment = BTreeMap::new();
        for variable in list(&own["env"])? {
            environment.insert(text(&variable["name"])?, text(&variable["value"])?);
        }
        let mut probes = BTreeMap::new();
        for name in ["startupProbe", "livenessProbe", "readinessProbe"] {
            if let Ok(command) = list(&own[name]["exec"]["command"]) {
                probes.insert(name.to_owned(), texts(command)?);
            }
        }
        let named = |part: &str| list(&own[part]).or_else(|_| list(&spec[part])).map(<[Yaml]>::iter);
        let settings = |yaml: &&Yaml| yaml["name"].as_str() == Some("settings");
        let mount = named("volumeMounts")?.find(settings).context("no mount")?;
        let volume = &named("volumes")?.find(settings).context("no volume")?["projected"];
        let mut files = BTreeMap::new();
        for source in list(&volume["sources"])? {
            let source = [&source["secret"], &source["configMap"]].into_iter().find(|kind| !kind.is_badvalue());
            let source = source.context("neither Secret nor ConfigMap")?;
            for item in list(&source["items"])? {
                files.insert(text(&item["path"])?, (text(&source["name"])?, text(&item["key"])?));
            }
        }
        Ok(Self {
            arguments: texts(list(&own["args"])?)?,
            environment,
            probes,
            mounted: text(&mount["mountPath"])?,
            files,
            mode: volume["defaultMode"].as_i64().context("no mode")?.try_into()?,
            user: user.try_into()?,
        })
    }

    /// Reads a service of deploy/compose/compose.yaml, with the variables of `.env`. Its files come from the secrets of the same name.
    pub(super) fn of_compose(service: &str, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let [file] = &read("deploy/compose/compose.yaml")?[..] else { anyhow::bail!("one document") };
        let (common, own) = (&file["x-relay"], &file["services"][service]);
        ensure!(common["read_only"].as_bool() == Some(true) && common["cap_drop"][0].as_str() == Some("ALL"));
        ensure!(common["security_opt"][0].as_str() == Some("no-new-privileges:true"));
        let mut environment = BTreeMap::new();
        for (name, value) in own["environment"].as_hash().context("no environment")? {
            environment.insert(text(name)?, interpolated(&text(value)?, variables)?);
        }
        let mut files = BTreeMap::new();
        for secret in texts(list(&own["secrets"])?)? {
            ensure!(!file["secrets"][secret.as_str()].is_badvalue(), "{secret} is no secret of the file");
            files.insert(secret.clone(), ("secrets".to_owned(), secret));
        }
        let mut probes = BTreeMap::new();
        if let Ok([_, command @ ..]) = list(&own["healthcheck"]["test"]) {
            probes.insert("healthcheck".to_owned(), texts(command)?);
        }
        Ok(Self {
            arguments: texts(list(&own["command"])?)?,
            environment,
            probes,
            mounted: "/run/secrets".to_owned(),
            files,
            mode: 0o440,
            user: 65532,
        })
    }

    /// Replaces a server's address, which the file has from an example. A container without the variable stays as it is.
    pub(super) fn at(mut self, variable: &str, address: &str) -> Self {
        if let Some(value) = self.environment.get_mut(variable) {
            address.clone_into(value);
        }
        self
    }
}

/// Replaces `${NAME:-default}` and `${NAME:?message}`.
fn interpolated(text: &str, variables: &[(&str, &str)]) -> anyhow::Result<String> {
    let Some(inner) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
        ensure!(!text.contains('$'), "{text}");
        return Ok(text.to_owned());
    };
    let (name, rest) = inner.split_once(':').context("no default")?;
    let given = variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    given.or_else(|| rest.strip_prefix('-').map(str::to_owned)).with_context(|| text.to_owned())
}

fn read(path: &str) -> anyhow::Result<Vec<Yaml>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).with_context(|| path.to_owned())?;
    Ok(YamlLoader::load_from_str(&text)?)
}

fn list(yaml: &Yaml) -> anyhow::Result<&[Yaml]> {
    Ok(yaml.as_vec().with_context(|| format!("no list: {yaml:?}"))?)
}

fn text(yaml: &Yaml) -> anyhow::Result<String> {
    Ok(yaml.as_str().with_context(|| format!("no text: {yaml:?}"))?.to_owned())
}

fn texts(yaml: &[Yaml]) -> anyhow::Result<Vec<String>> {
    yaml.iter().map(text).collect()
}
