// The measured tasks as a BullMQ worker.
"use strict";

const { Worker } = require("bullmq");
const IORedis = require("ioredis");

const Redis = IORedis.Redis ?? IORedis;
const connection = new Redis(process.env.BENCH_URL, { maxRetriesPerRequest: null });

const tasks = {
  noop: async () => null,
  nap: async ({ seconds }) => {
    await new Promise((done) => setTimeout(done, 1000 * seconds));
    return seconds;
  },
};

const worker = new Worker("bench", (job) => tasks[job.name](job.data), {
  connection,
  concurrency: Number(process.env.BENCH_CONCURRENCY),
});

process.on("SIGTERM", async () => {
  await worker.close();
  process.exit(0);
});
