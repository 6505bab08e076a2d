// BullMQ's sending side: `fill FILE TASK COUNT ARG…` and `check FILE VALUE`, as in client.py.
"use strict";

const fs = require("node:fs");
const { Queue } = require("bullmq");
const IORedis = require("ioredis");

const CHUNK = 500;
const SAMPLE = 500;

async function fill(queue, file, task, count, seconds) {
  const ids = [];
  const data = seconds === undefined ? {} : { seconds: Number(seconds) };
  for (let start = 0; start < count; start += CHUNK) {
    const some = Math.min(CHUNK, count - start);
    const jobs = await queue.addBulk(Array.from({ length: some }, () => ({ name: task, data })));
    ids.push(...jobs.map((job) => job.id));
  }
  fs.writeFileSync(file, ids.join("\n"));
}

async function check(queue, file, value) {
  const ids = fs.readFileSync(file, "utf8").split("\n");
  const wanted = JSON.parse(value);
  const step = Math.max(1, Math.floor(ids.length / SAMPLE));
  for (let i = 0; i < ids.length; i += step) {
    const job = await queue.getJob(ids[i]);
    if (!job?.finishedOn || job.failedReason || job.returnvalue !== wanted) {
      throw new Error(`job ${ids[i]} returned ${JSON.stringify(job?.returnvalue)}, not ${value}`);
    }
  }
}

async function main() {
  const Redis = IORedis.Redis ?? IORedis;
  const connection = new Redis(process.env.BENCH_URL, { maxRetriesPerRequest: null });
  const queue = new Queue("bench", { connection });
  const [command, ...words] = process.argv.slice(2);
  await { fill, check }[command](queue, ...words);
  await queue.close();
  connection.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
