// node-postgres through the proxy, with its cursor and its COPY streams. A line a check: see ../run.py.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const { Readable } = require('node:stream');
const { pipeline } = require('node:stream/promises');
const { setTimeout: sleep } = require('node:timers/promises');
const { Client, Pool } = require('pg');
const Cursor = require('pg-cursor');
const copyStreams = require('pg-copy-streams');

const CONNECTIONS_MAX = Number(process.env.CONNECTIONS_MAX);
const CHECK_DEADLINE_MS = 60_000;
const TLS = process.env.PGSSLMODE !== 'disable';
const unique = `node_${process.pid}`;

// pg reads the host, port and so on from the environment; of TLS it is told here.
const ssl = TLS ? { ca: fs.readFileSync(process.env.PGSSLROOTCERT) } : false;

async function withClient(work, options = {}) {
  const client = new Client({ ssl, connectionTimeoutMillis: 10_000, ...options });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

async function value(client, ...query) {
  const { rows } = await client.query(...query);
  return Object.values(rows[0])[0];
}

// By a connection of its own. It asks for no TLS for it, whatever the session has.
function cancel(client) {
  new Client({ ssl }).cancel(client, client.activeQuery);
}

const checks = {
  login: () => withClient(async (client) => {
    assert.equal(await value(client, 'select current_user'), 'demo');
    assert.equal(Boolean(client.connection.stream.encrypted), TLS);
  }),

  'wrong password': () => assert.rejects(withClient(() => {}, { password: 'wrong' }), { code: '28P01' }),

  'several statements in one query': () => withClient(async (client) => {
    const results = await client.query("select 1 as a; select 2 as b; select 3 as c");
    assert.deepEqual(results.map(({ rows }) => rows[0]), [{ a: 1 }, { b: 2 }, { c: 3 }]);
  }),

  'parameters, text': () => withClient(async (client) => {
    const { rows } = await client.query(
      'select $1::int as i, $2::text as t, $3::bytea as b, $4::text as n, $5::int[] as a, $6::jsonb as j, $7::bool as f',
      [42, "ü and '", Buffer.from([0, 255, 92]), null, [1, null, 3], { deep: ['x'] }, true]);
    assert.deepEqual(rows[0], {
      i: 42, t: "ü and '", b: Buffer.from([0, 255, 92]), n: null, a: [1, null, 3], j: { deep: ['x'] }, f: true,
    });
  }),

  'results, binary': () => withClient(async (client) => {
    const { rows } = await client.query(
      { text: 'select $1::int4 as i, $2::text as t, $3::bool as f', values: [42, 'ü', true], binary: true });
    assert.deepEqual(rows[0], { i: 42, t: 'ü', f: true });
  }),

  'large parameter and row': () => withClient(async (client) => {
    const blob = Buffer.alloc(5_000_000, 'pgsluice');
    assert.deepEqual(await value(client, 'select $1::bytea', [blob]), blob);
  }),

  'prepared statement': () => withClient(async (client) => {
    for (let number = 0; number < 20; number += 1) {
      const query = { name: 'twice', text: 'select $1::int * 2', values: [number] };
      assert.equal(await value(client, query), 2 * number);
      if (number % 5 === 0) {
        await client.query('begin');
        assert.equal(await value(client, query), 2 * number);
        await client.query('commit');
      }
    }
  }),

  'prepared statements by the same name in two sessions': () => withClient((one) => withClient(async (two) => {
    for (let number = 0; number < 10; number += 1) {
      assert.equal(await value(one, { name: 'same', text: 'select $1::int + 1', values: [number] }), number + 1);
      assert.equal(await value(two, { name: 'same', text: 'select $1::text', values: [`t${number}`] }), `t${number}`);
    }
  })),

  'queries sent without waiting': () => withClient(async (client) => {
    const numbers = [...Array(200).keys()];
    const found = await Promise.all(numbers.map((number) => value(client, 'select $1::int', [number])));
    assert.deepEqual(found, numbers);
  }),

  'pipeline mode': () => withClient(async (client) => {
    const numbers = [...Array(200).keys()];
    const found = await Promise.all(numbers.map((number) => value(client, 'select $1::int', [number])));
    assert.deepEqual(found, numbers);
  }, { pipeline: true }),

  'pipeline mode: transactions and an error, all sent at once': () => withClient(async (client) => {
    await client.query(`create table ${unique}_pipe (id int)`);
    const sent = [];
    const send = (...query) => sent.push(client.query(...query));
    for (let id = 0; id < 40; id += 1) {
      send('begin');
      send(`insert into ${unique}_pipe values ($1)`, [id]);
      if (id % 4 === 3) send('select 1/$1::int', [0]);
      send(id % 2 ? 'commit' : 'rollback');
    }
    const outcomes = await Promise.allSettled(sent);
    assert.deepEqual(outcomes.filter(({ reason }) => reason).map(({ reason }) => reason.code), Array(10).fill('22012'));
    const { rows } = await client.query(`select id from ${unique}_pipe order by id`);
    assert.deepEqual(rows.map(({ id }) => id), Array.from({ length: 10 }, (_, index) => 4 * index + 1));
    await client.query(`drop table ${unique}_pipe`);
  }, { pipeline: true }),

  'copy in and out': () => withClient(async (client) => {
    const lines = Array.from({ length: 5000 }, (_, number) => `${number}\tline ${number}\n`);
    await client.query(`create table ${unique}_copy (id int, note text)`);
    await pipeline(Readable.from(lines), client.query(copyStreams.from(`copy ${unique}_copy from stdin`)));
    const chunks = [];
    await pipeline(
      client.query(copyStreams.to(`copy (select * from ${unique}_copy order by id) to stdout`)),
      async (source) => { for await (const chunk of source) chunks.push(chunk); });
    assert.equal(Buffer.concat(chunks).toString(), lines.join(''));
    await client.query(`drop table ${unique}_copy`);
  }),

  'copy in that fails': () => withClient(async (client) => {
    await client.query(`create table ${unique}_bad (id int)`);
    const copy = pipeline(Readable.from(['1\n', 'bad\n']), client.query(copyStreams.from(`copy ${unique}_bad from stdin`)));
    await assert.rejects(copy, { code: '22P02' });
    assert.equal(await value(client, `select count(*)::int from ${unique}_bad`), 0);
    await client.query(`drop table ${unique}_bad`);
  }),

  'commit, rollback, savepoint': () => withClient(async (client) => {
    await client.query(`create table ${unique}_tx (id int)`);
    const insert = (id) => client.query(`insert into ${unique}_tx values ($1)`, [id]);
    await client.query('begin'); await insert(1); await client.query('commit');
    await client.query('begin'); await insert(2); await client.query('rollback');
    await client.query('begin'); await client.query('savepoint a'); await insert(3);
    await assert.rejects(client.query('select 1/0'), { code: '22012' });
    await assert.rejects(client.query('select 1'), { code: '25P02' });
    await client.query('rollback to a'); await insert(4); await client.query('commit');
    const { rows } = await client.query({ text: `select id from ${unique}_tx order by id`, rowMode: 'array' });
    assert.deepEqual(rows, [[1], [4]]);
    await client.query(`drop table ${unique}_tx`);
  }),

  'error, then goes on': () => withClient(async (client) => {
    for (let round = 0; round < 3; round += 1) {
      await assert.rejects(client.query('select 1/$1::int', [0]), { code: '22012' });
      await assert.rejects(client.query('selekt'), { code: '42601' });
      await assert.rejects(client.query({ name: `bad${round}`, text: 'select no_such_column' }), { code: '42703' });
      assert.equal(await value(client, 'select $1::text', ['after']), 'after');
    }
  }),

  cancel: () => withClient(async (client) => {
    const started = Date.now();
    const sleeping = client.query('select pg_sleep(60)');
    sleep(500).then(() => cancel(client));
    await assert.rejects(sleeping, { code: '57014' });
    assert.ok(Date.now() - started < 15_000);
    assert.equal(await value(client, 'select $1::text', ['after']), 'after');
  }),

  'cursor in pieces': () => withClient(async (client) => {
    const cursor = client.query(new Cursor('select generate_series(1, $1::int) as n', [1234]));
    let total = 0;
    for (let rows; (rows = await cursor.read(100)).length > 0;) total += rows.reduce((sum, { n }) => sum + n, 0);
    assert.equal(total, (1234 * 1235) / 2);
    await cursor.close();
    assert.equal(await value(client, 'select 1'), 1);
  }),

  'cursor closed early': () => withClient(async (client) => {
    const cursor = client.query(new Cursor('select generate_series(1, 1000000)'));
    assert.equal((await cursor.read(3)).length, 3);
    await cursor.close();
    assert.equal(await value(client, 'select $1::text', ['after']), 'after');
  }),

  'two cursors in a transaction': () => withClient(async (client) => {
    await client.query('begin');
    const first = client.query(new Cursor('select generate_series(1, 10) as n'));
    assert.equal((await first.read(4)).length, 4);
    await first.close();
    const second = client.query(new Cursor('select generate_series(11, 20) as n'));
    assert.equal((await second.read(20)).length, 10);
    await second.close();
    await client.query('commit');
  }),

  notification: () => withClient((listener) => withClient(async (sender) => {
    const heard = new Promise((resolve) => { listener.once('notification', resolve); });
    await listener.query(`listen ${unique}`);
    await sender.query('select pg_notify($1, $2)', [unique, 'news']);
    assert.equal((await heard).payload, 'news');
  })),

  notice: () => withClient(async (client) => {
    const heard = new Promise((resolve) => { client.once('notice', resolve); });
    await client.query("do $$ begin raise notice 'hello'; end $$");
    assert.equal((await heard).message, 'hello');
  }),

  'settings are kept': () => withClient(async (client) => {
    await client.query("set work_mem = '9MB'");
    for (let round = 0; round < 3; round += 1) {
      await client.query('begin');
      await client.query('commit');
    }
    const settings = [];
    for (const name of ['application_name', 'statement_timeout', 'work_mem']) settings.push(await value(client, `show ${name}`));
    assert.deepEqual(settings, ['node-kept', '54321ms', '9MB']);
  }, { application_name: 'node-kept', statement_timeout: 54321 }),

  'many sessions by a pool': async () => {
    const pool = new Pool({ ssl, max: 4 * CONNECTIONS_MAX, connectionTimeoutMillis: 30_000 });
    try {
      const numbers = [...Array(400).keys()];
      const found = await Promise.all(numbers.map(async (number) => {
        const client = await pool.connect();
        try {
          await client.query('begin');
          await client.query('select pg_sleep(0.002)');
          const answer = await value(client, 'select $1::int', [number]);
          await client.query('commit');
          return answer;
        } finally {
          client.release();
        }
      }));
      assert.deepEqual(found, numbers);
    } finally {
      await pool.end();
    }
  },
};

async function main() {
  for (const [name, check] of Object.entries(checks)) {
    const overdue = new AbortController();
    try {
      await Promise.race([check(), sleep(CHECK_DEADLINE_MS, undefined, { signal: overdue.signal, ref: true })
        .then(() => { throw new Error(`not within ${CHECK_DEADLINE_MS} ms`); })]);
      console.log(`ok ${name}`);
    } catch (error) {
      console.error(error);
      console.log(`FAILED ${name}: ${String(error.message).replace(/\s+/g, ' ')}`);
    } finally {
      overdue.abort();
    }
  }
}

main();
