#!/bin/bash
# Start a real Slurm on this single Debian 12 machine, as root, without systemd:
#   munged, mariadbd and slurmdbd (for sacct), slurmctld, and one slurmd per node. Nodes n1 and n2 form one site, with
#   partitions main, low and high; n3 and n4 form another, with main2, low2 and high2.
# Idempotent. All state is under $D; every process it starts has a pid file in $D/run for slurm-down.sh.
# `slurm-up.sh --check` starts nothing; it succeeds if that Slurm is running.
set -euo pipefail
D=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/mscd-slurm}
NODES=(n1 n2 n3 n4)
DBPORT=13306
T0=$EPOCHREALTIME
say() { awk -v a="$T0" -v b="$EPOCHREALTIME" -v m="$*" 'BEGIN{printf "[%6.2fs] %s\n", b-a, m}'; }
# by now a stale pid file may name an unrelated process
alive() { local b; b=$(basename "$1" .pid); [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "${b%%-*}" ]; }
die() { echo "slurm-up: $*" >&2; tail -n 5 $D/log/*.log >&2 || true; exit 1; }
waitfor() { local n=$1; shift; for i in $(seq 1 $((n*10))); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; return 1; }
if [ "${1:-}" = --check ]; then alive $D/run/slurmctld.pid; exit; fi
# exit status 77: this machine is not suitable
cannot() { echo "$*" >&2; exit 77; }
[ "$(id -u)" = 0 ] || cannot "only root can start a Slurm"
grep -qx ID=debian /etc/os-release || cannot "slurm-up.sh installs Debian's Slurm, and this is not Debian"
case "$(readlink -m /etc/slurm/slurm.conf)" in
  $D/*) ;;
  *) [ ! -e /etc/slurm/slurm.conf ] || cannot "/etc/slurm/slurm.conf belongs to another Slurm";;
esac

# 1. packages; Debian's postinst must not start the services
want=(slurmctld slurmd slurm-client munge slurmdbd mariadb-server)
need=()
for p in "${want[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' $p 2>/dev/null | grep -qx installed || need+=($p)
done
if [ ${#need[@]} -gt 0 ]; then
  made=0
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1
  fi
  rc=0
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${need[@]}" >${TMPDIR:-/tmp}/slurm-apt.log 2>&1 || rc=$?
  [ $made = 0 ] || rm -f /usr/sbin/policy-rc.d
  [ $rc = 0 ] || { echo "slurm-up: apt-get failed ($rc), see ${TMPDIR:-/tmp}/slurm-apt.log" >&2; exit 1; }
  say "packages installed: ${need[*]}"
fi

# 2. configuration
mkdir -p $D/{state,log,run,spool}; chmod 755 $D $D/{state,log,run,spool}
for n in "${NODES[@]}"; do
  mkdir -p $D/spool/$n
  # submitit takes MASTER_ADDR from the node list, so node names must resolve
  grep -qE "[[:space:]]$n([[:space:]]|\$)" /etc/hosts || echo "127.0.0.1 $n # slurm-up" >>/etc/hosts
done
CPUS=$(nproc); MEM=$(awk '/MemTotal/{print int($2/1024*0.9/2)}' /proc/meminfo)  # half of it per node: each site may claim all of it
H=$(hostname -s)
# job ids must not restart at 1 after a wipe: submitit reads <folder>/<jobid>_0_result.pkl and would return an old run's result
[ -s $D/firstjobid ] || echo $(( ($(date +%s) / 10) % 60000000 )) >$D/firstjobid
{
cat <<C
ClusterName=onebox
SlurmctldHost=$H(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmctldLogFile=$D/log/slurmctld.log
StateSaveLocation=$D/state
# %n = node name: each slurmd on this host needs its own pid file, log and spool folder
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmdSpoolDir=$D/spool/%n
FirstJobId=$(cat $D/firstjobid)
# GPUs are only counted: jobs request them as on a cluster but find none
GresTypes=gpu
# no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
# a job that exceeds its requested memory is killed, as on a cluster
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=2000
# nodes may declare more CPUs than they detect
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
JobRequeue=1
# keep finished jobs in squeue/scontrol: snakemake's squeue mode needs at least 120 s, and tests read them after a whole run
MinJobAge=7200
# submitit jobs ignore SIGTERM, so a cancelled one survives for this long
KillWait=5
SlurmdTimeout=30
# a requeued job waits cred_expire + 1 s before it may start again (default 120 s; less than 5 is refused)
AuthInfo=cred_expire=5
# and then waits for the next scheduling pass (default 60 s, backfill 30 s)
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
# real preemption: a job in partition "high" requeues jobs of "low"; the --signal (submitit's USR2) is sent first
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageUser=root
AccountingStorageTRES=gres/gpu
C
port=17001
for n in "${NODES[@]}"; do
  echo "NodeName=$n NodeHostname=$H NodeAddr=127.0.0.1 Port=$port CPUs=$CPUS RealMemory=$MEM Gres=gpu:4 State=UNKNOWN"
  port=$((port+1))
done
default=YES
for site in :n1,n2 2:n3,n4; do
  nodes="Nodes=${site#*:} MaxTime=INFINITE DefaultTime=10 State=UP"
  echo "PartitionName=main${site%:*} $nodes Default=$default PriorityTier=5 PreemptMode=OFF"
  echo "PartitionName=low${site%:*} $nodes PriorityTier=1 PreemptMode=REQUEUE GraceTime=15"
  echo "PartitionName=high${site%:*} $nodes PriorityTier=10 PreemptMode=OFF"
  default=NO
done
} >$D/slurm.conf
# each GPU must be a separate device; any four will do
printf 'Name=gpu File=/dev/%s\n' null zero full random >$D/gres.conf
ln -sfn $D/gres.conf /etc/slurm/gres.conf
ln -sfn $D/slurm.conf /etc/slurm/slurm.conf

# 3. munged
if ! (munge -n </dev/null | unmunge) >/dev/null 2>&1; then
  [ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=128 count=1 status=none
  chown munge:munge /etc/munge/munge.key; chmod 400 /etc/munge/munge.key
  install -d -o munge -g munge -m 755 /run/munge   # /run is bare without systemd
  install -d -o munge -g munge -m 700 /var/log/munge
  runuser -u munge -- /usr/sbin/munged
  cp /run/munge/munged.pid $D/run/munged.pid
  say "munged started"
fi

# 4. accounting: a private mariadbd on its own TCP port, and slurmdbd
if ! alive $D/run/mariadbd.pid; then
  if [ ! -d $D/mysql/mysql ]; then
    install -d -o mysql -g mysql -m 700 $D/mysql
    mariadb-install-db --no-defaults --user=mysql --datadir=$D/mysql --skip-test-db --auth-root-authentication-method=normal >$D/log/mariadb-install.log 2>&1 || die "mariadb-install-db"
    say "database directory created"
  fi
  : >$D/log/mariadbd.log; chown mysql $D/log/mariadbd.log
  setsid mariadbd --no-defaults --user=mysql --datadir=$D/mysql --socket=$D/mysql/s.sock --pid-file=$D/mysql/pid \
    --bind-address=127.0.0.1 --port=$DBPORT --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    --innodb-flush-log-at-trx-commit=2 --skip-name-resolve --log-error=$D/log/mariadbd.log </dev/null >/dev/null 2>&1 &
  echo $! >$D/run/mariadbd.pid; disown
  waitfor 30 mariadb --no-defaults -uroot -S $D/mysql/s.sock -e 'select 1' || die "mariadbd"
  say "mariadbd started"
fi
mariadb --no-defaults -uroot -S $D/mysql/s.sock -e "create database if not exists slurm_acct_db; create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
(umask 077; cat >$D/slurmdbd.conf <<C
DbdHost=$H
DbdAddr=127.0.0.1
AuthType=auth/munge
SlurmUser=root
PidFile=$D/run/slurmdbd.pid
LogFile=$D/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DBPORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
C
); chmod 600 $D/slurmdbd.conf
ln -sfn $D/slurmdbd.conf /etc/slurm/slurmdbd.conf
if ! alive $D/run/slurmdbd.pid; then
  slurmdbd
  waitfor 30 sacctmgr -n list cluster || die "slurmdbd"
  say "slurmdbd started"
fi
# slurmctld refuses to start against a database that does not know its cluster
if ! sacctmgr -n list cluster format=cluster%20 | grep -qw onebox; then
  sacctmgr -i add cluster onebox >/dev/null
  sacctmgr -i add account default Cluster=onebox >/dev/null
  sacctmgr -i add user root Account=default Cluster=onebox >/dev/null || true
fi

# 5. slurmctld and one slurmd per node
alive $D/run/slurmctld.pid || { slurmctld; say "slurmctld started"; }
for n in "${NODES[@]}"; do
  alive $D/run/slurmd-$n.pid || { slurmd -N $n; say "slurmd $n started"; }
done

# 6. wait until every node is usable
ready() { [ "$(sinfo -h -N -p main,main2 -o '%t' | grep -cxE 'idle|mix|alloc')" = ${#NODES[@]} ]; }
waitfor 60 ready || { sinfo -N -l || true; die "nodes not ready"; }
say "nodes ready"
sinfo -N -p main,main2 -o '%N %t %c %m'
