//! Makes other servers from a private one: a streaming standby, an empty twin. Also runs client programs such as `pg_dump`.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use secrecy::ExposeSecret;

use super::{PostgresError, PrivatePostgres, TemporaryDirectory, USER, initdb};

impl PrivatePostgres {
    /// Takes a base backup and starts a streaming standby on its own port, with the same users and passwords.
    ///
    /// # Errors
    /// [`PostgresError::Copy`] if `pg_basebackup` fails, and the errors of [`PrivatePostgres::start`].
    pub async fn standby(&self) -> Result<Self, PostgresError> {
        let directory = TemporaryDirectory::create(self.user.as_ref())?;
        let data = directory.path().join(initdb::DATA);
        let arguments = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync", "--pgdata"];
        let arguments = arguments.iter().map(OsStr::new).chain([data.as_os_str()]);
        let output = self.client_program("pg_basebackup", arguments).await?;
        if !output.status.success() {
            return Err(PostgresError::Copy(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Self::start_in(directory, self.user.clone(), self.binaries.clone(), self.options.clone(), self.password.clone())
            .await
    }

    /// Starts an empty server with the same binaries, options and superuser password, for a restore or an upgrade.
    ///
    /// # Errors
    /// The errors of [`PrivatePostgres::start`].
    pub async fn empty_twin(&self) -> Result<Self, PostgresError> {
        let directory = TemporaryDirectory::create(self.user.as_ref())?;
        initdb::run(&self.binaries, directory.path(), self.user.as_ref(), &self.password).await?;
        Self::start_in(directory, self.user.clone(), self.binaries.clone(), self.options.clone(), self.password.clone())
            .await
    }

    /// Returns true if the server's binaries include the program. A downloaded server has no client programs.
    pub fn has_program(&self, name: &str) -> bool {
        self.binaries.program(name).exists()
    }

    /// Returns the directory of the server's programs.
    pub fn programs(&self) -> &Path {
        self.binaries.directory()
    }

    /// Returns the data directory.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join(initdb::DATA)
    }

    /// Runs a client program as the server's user in the server's directory. `PG*` variables lead to this server.
    ///
    /// # Errors
    /// An error if the program cannot be started.
    pub async fn client_program<A: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<Output> {
        let mut command = std::process::Command::new(self.binaries.program(name));
        command
            .args(arguments)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", USER)
            .env("PGPASSWORD", self.password.expose_secret())
            .env("PGSSLMODE", "disable")
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        if let Some(user) = &self.user {
            user.run(&mut command);
        }
        tokio::process::Command::from(command).kill_on_drop(true).output().await
    }
}
