// What the programs for Node have in common: who a client is, what it counts, how it speaks with ../crowd.py.
'use strict';

const readline = require('node:readline');

const CLIENTS = Number(process.env.CLIENTS);
const ROUNDS = Number(process.env.ROUNDS);
// What midnight is, is decided when the text is prepared; how noon is written, when it is executed.
const NOON = "select extract(hour from timestamptz '2026-01-01 12:00+00' - timestamptz '2026-01-01 00:00')"
  + " || ' ' || (timestamptz '2026-01-01 12:00+00')::text as noon";
const SETTINGS = "select current_setting('application_name') as name, current_setting('search_path') as path,"
  + " current_setting('TimeZone') as zone, current_setting('app.client') as own";

const two = (number) => String(number).padStart(2, '0');

class Client {
  constructor(number) {
    this.number = number;
    this.name = `crowd-${number}`;
    this.schema = `crowd_${number}`;
    this.hours = number % 11 + 1;
    this.zone = `Etc/GMT+${this.hours}`;
    this.noon = `${12 - this.hours} 2026-01-01 ${two(12 - this.hours)}:00:00-${two(this.hours)}`;
    this.committed = 0;
    this.inserted = 0;
    this.backends = new Set();
    this.stopped = false;
  }

  // Tells of an answer that is not this client's own.
  expect(what, got, wanted) {
    const [is, should] = [JSON.stringify(got), JSON.stringify(wanted)];
    if (is !== should) console.log(`WRONG ${this.name}: ${what}: ${is} instead of ${should}`);
  }

  expectSettings({ name, path, zone, own }) {
    this.expect('application_name, search_path, TimeZone, app.client',
      [name, path, zone, own], [this.name, this.schema, this.zone, this.name]);
  }

  async attempt(work) {
    try {
      return await work();
    } catch (error) {
      this.stopped = true;
      console.log(`ERROR ${this.name}: ${error.code}: ${String(error.message).replace(/\s+/g, ' ')}`);
      return undefined;
    }
  }
}

// Every third transaction is rolled back.
const commits = (turn) => turn % 3 !== 2;

async function run(connect, turn, close) {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const pause = (word) => { console.log(word); return lines.next(); };
  const clients = Array.from({ length: CLIENTS }, (_, number) => new Client(number));
  const sessions = await Promise.all(clients.map((client) => client.attempt(() => connect(client))));
  await pause('ready');
  await Promise.all(clients.map(async (client, index) => {
    for (let number = 0; number < ROUNDS && !client.stopped; number += 1) {
      await client.attempt(() => turn(client, sessions[index], number));
    }
  }));
  const sum = (of) => clients.map(of).reduce((total, one) => total + one, 0);
  const met = sum((client) => client.backends.size) / CLIENTS;
  await pause(`done ${sum((client) => client.committed)} ${met.toFixed(1)}`);
  await Promise.all(clients.map((client, index) => client.attempt(() => close(sessions[index]))));
  process.exit(0);
}

module.exports = { NOON, SETTINGS, commits, run };
