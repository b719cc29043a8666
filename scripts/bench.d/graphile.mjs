// How fast graphile-worker drains a filled queue on the PostgreSQL of scripts/bench: the
// yardstick beside our own figures. Without order (any job at any time), and with one queue
// per account (what keeps an account's events in order there).
//
//   BENCH_PG       URL of the server; the schema graphile_worker is dropped and made anew
//   BENCH_MODULES  directory whose node_modules holds graphile-worker
//   BENCH_FORKS    jobs at once, default 100 (10 NASes × 10 forks)
//   BENCH_PLAIN    jobs without order, default 50000
//   BENCH_QUEUED   jobs with a queue per account, default 20000
//   BENCH_ACCOUNTS accounts, default 10000, as in our own runs
//
// Prints rows of a Markdown table; progress goes to stderr.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.BENCH_MODULES, "package.json"));
const { run, runMigrations, Logger } = require("graphile-worker");
const { Pool } = require("pg");
const manifest = join(process.env.BENCH_MODULES, "node_modules/graphile-worker/package.json");
const { version } = JSON.parse(readFileSync(manifest, "utf8"));

const connectionString = process.env.BENCH_PG;
const forks = number("BENCH_FORKS", 100, 1, 1_000);
const plain = number("BENCH_PLAIN", 50_000, 1, 1_000_000);
const queued = number("BENCH_QUEUED", 20_000, 1, 100_000);
const accounts = number("BENCH_ACCOUNTS", 10_000, 1, 1_000_000);

// A run that takes longer than this is broken, not slow.
const DEADLINE_MS = 300_000;
// How often the database is asked whether everything is gone.
const LOOK_EVERY_MS = 5;

function number(name, fallback, least, most) {
  const value = Number(process.env[name] ?? fallback);
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new Error(`${name}=${process.env[name]}: a whole number ${least}..${most} is wanted`);
  }
  return value;
}

const silent = new Logger(() => () => {});
const pool = new Pool({ connectionString, max: 2 });

async function fill(jobs, ordered) {
  await pool.query("drop schema if exists graphile_worker cascade");
  await runMigrations({ connectionString, logger: silent });
  // run_at is what it orders by; rows of one transaction would otherwise all be alike.
  await pool.query(
    `select count(*) from graphile_worker.add_jobs((
       select array_agg(row('event',
           json_build_object('user_id', n % $2::int, 'n', n, 'cmd', 'user_rate_set'),
           case when $3 then 'account_' || (n % $2::int) end,
           now() - make_interval(secs => ($1::int - n) / 1e6),
           null, null, null, null)::graphile_worker.job_spec)
       from generate_series(1, $1::int) n))`,
    [jobs, accounts, ordered],
  );
  await pool.query("vacuum analyze");
}

// Jobs per second from the start of the workers to the moment when the table is empty.
async function drain(jobs, ordered, worker) {
  await fill(jobs, ordered);
  let executed = 0;
  let disorder = 0;
  const last = new Map();
  const begin = performance.now();
  const runner = await run({
    preset: { worker: { connectionString, logger: silent, concurrentJobs: forks,
      maxPoolSize: Math.min(forks + 2, 40), ...worker } },
    noHandleSignals: true,
    taskList: {
      // The record driver's place: nothing is sent.
      event: async ({ user_id, n }) => {
        if (n < (last.get(user_id) ?? 0)) disorder += 1;
        last.set(user_id, n);
        executed += 1;
      },
    },
  });
  let left = jobs;
  while (left > 0) {
    if (performance.now() - begin > DEADLINE_MS) throw new Error(`${left} of ${jobs} jobs left`);
    await new Promise((wake) => setTimeout(wake, LOOK_EVERY_MS));
    if (executed < jobs) continue;
    left = Number((await pool.query("select count(*) n from graphile_worker.jobs")).rows[0].n);
  }
  const seconds = (performance.now() - begin) / 1_000;
  await runner.stop();
  if (executed !== jobs || (ordered && disorder > 0)) {
    throw new Error(`${executed} of ${jobs} executed, ${disorder} out of order`);
  }
  return jobs / seconds;
}

// Its own advice for throughput, and its defaults with a tenth of the jobs: they take long.
const SETTINGS = [
  ["batches of 500", 1, { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 }],
  ["its defaults", 10, {}],
];

async function rows(what, all, ordered) {
  for (const [name, part, worker] of SETTINGS) {
    const jobs = Math.ceil(all / part);
    const rate = await drain(jobs, ordered, worker);
    console.error(`graphile-worker: ${what}, ${name}: ${Math.round(rate)} jobs/s`);
    console.log(`| graphile-worker ${version}, ${what}, ${name} | ${jobs} | ${Math.round(rate)} |`);
  }
}

try {
  await rows("without order", plain, false);
  await rows("one queue per account", queued, true);
} finally {
  await pool.end();
}
