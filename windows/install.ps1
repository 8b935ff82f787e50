# Installs siteagent on Windows, with nothing but what Windows and Python bring. Run it as an administrator:
#
#   powershell -ExecutionPolicy Bypass -File install.ps1 [-Provider 203.0.113.0/24] [-Python C:\Python312\python.exe]
#
# It makes a virtual environment in C:\ProgramData\siteagent\program, installs the package there, closes the directory
# to ordinary users, writes a configuration where there is none (by asking), and adds the tasks. May be run again.
param(
    [string] $Provider = "",
    [string] $Python = "py",
    [string] $Package = "siteagent"
)

Set-StrictMode -Version 2
$ErrorActionPreference = "Stop"

# Not Write-Error: where errors stop the script it would end with 1, whatever follows.
function Stop-With([int] $Code, [string] $Text) {
    [Console]::Error.WriteLine($Text)
    exit $Code
}

$identity = [Security.Principal.WindowsIdentity]::GetCurrent()
$principal = New-Object Security.Principal.WindowsPrincipal($identity)
if (-not $principal.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)) {
    Stop-With 77 "cannot install siteagent: that takes an administrator`n  fix: start PowerShell with 'Run as administrator'"
}

function Invoke-Checked([string] $Program, [string[]] $Arguments) {
    & $Program @Arguments
    if ($LASTEXITCODE -ne 0) {
        Stop-With 73 "cannot go on: $Program $($Arguments -join ' ') ended with $LASTEXITCODE"
    }
}

$root = Join-Path $env:ProgramData "siteagent"
# Anybody may make directories in ProgramData: what is there already may be somebody else's, or lead elsewhere.
foreach ($name in "", "config", "state", "mail", "log") {
    $place = Join-Path $root $name
    if ((Test-Path $place) -and ((Get-Item -Force $place).Attributes -band [IO.FileAttributes]::ReparsePoint)) {
        Stop-With 73 "cannot install siteagent: ${place} leads elsewhere`n  fix: see who made it, and remove it"
    }
    New-Item -ItemType Directory -Force -Path $place | Out-Null
}

# Administrators (S-1-5-32-544) and the system (S-1-5-18) own it, the agent's account LOCAL SERVICE (S-1-5-19) may change
# what it must, nobody else. What lay there already loses its own rights for those of the directory that is shut by then.
Invoke-Checked "icacls.exe" @($root, "/setowner", "*S-1-5-32-544", "/T", "/C", "/Q")
Invoke-Checked "icacls.exe" @($root, "/inheritance:r", "/grant:r", "*S-1-5-32-544:(OI)(CI)F",
    "*S-1-5-18:(OI)(CI)F", "*S-1-5-19:(OI)(CI)RX", "/Q")
Invoke-Checked "icacls.exe" @("$root\*", "/reset", "/T", "/C", "/Q")
foreach ($name in "state", "mail", "log") {
    Invoke-Checked "icacls.exe" @((Join-Path $root $name), "/grant:r", "*S-1-5-19:(OI)(CI)M", "/Q")
}

$program = Join-Path $root "program"
$siteagent = Join-Path $program "Scripts\siteagent.exe"
Invoke-Checked $Python @("-m", "venv", $program)
Invoke-Checked (Join-Path $program "Scripts\python.exe") @("-m", "pip", "install", "--upgrade", $Package)

$configuration = Join-Path $root "config\siteagent.toml"
if (-not (Test-Path $configuration)) {
    Invoke-Checked $siteagent @("--config", $configuration, "init")
}
Invoke-Checked $siteagent @("--config", $configuration, "check")
Invoke-Checked $siteagent @("--config", $configuration, "install-service")

# By port and sender, not by program: a virtual environment runs the python.exe that it was made from.
& netsh.exe advfirewall firewall delete rule name="Siteagent SMTP" | Out-Null
$remote = if ($Provider) { $Provider } else { "any" }
Invoke-Checked "netsh.exe" @("advfirewall", "firewall", "add", "rule", "name=Siteagent SMTP", "dir=in", "action=allow",
    "protocol=TCP", "localport=25", "remoteip=$remote")

Write-Output "installed, and running. next: $siteagent --config $configuration doctor"
