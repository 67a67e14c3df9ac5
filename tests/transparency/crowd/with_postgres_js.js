// postgres.js at its defaults: it asks for the types when it connects, prepares every statement under a name, pipelines.
// One connection a client, so that each has its own login.
'use strict';

const { postgres } = require('./packages.js');
const { NOON, SETTINGS, commits, run } = require('./common.js');

class RollBack extends Error {}

async function connect(client) {
  const sql = postgres({
    host: process.env.PGHOST, port: Number(process.env.PGPORT), user: process.env.PGUSER,
    password: process.env.PGPASSWORD, database: process.env.PGDATABASE, max: 1,
    connection: { application_name: client.name, search_path: client.schema, TimeZone: client.zone },
  });
  await sql`select set_config('app.client', ${client.name}, false)`;
  return sql;
}

async function turn(client, sql, number) {
  try {
    await sql.begin(async (transaction) => {
      await work(client, transaction, number);
      if (!commits(number)) throw new RollBack();
    });
    client.committed += 1;
    client.inserted += 1;
  } catch (error) {
    if (!(error instanceof RollBack)) throw error;
  }
}

async function work(client, sql, number) {
  // Sent without waiting for one another.
  const [[settings], [shared], [own], [time], [backend]] = await Promise.all([
    sql.unsafe(SETTINGS),
    sql`select owner from box where id = ${number % 3 + 1}`,
    sql.unsafe(`select $1::int + ${client.number * 1000} as n`, [number], { prepare: true }),
    sql.unsafe(NOON, [], { prepare: true }),
    sql`select pg_backend_pid() as pid`,
  ]);
  client.expectSettings(settings);
  client.expect('a shared text under the own search_path', shared.owner, client.number);
  client.expect('the own text', own.n, client.number * 1000 + number);
  client.expect('noon in the own zone', time.noon, client.noon);
  client.backends.add(backend.pid);
  const rows = [];
  for await (const some of sql`select owner from box where note = ${'first'}`.cursor(2)) rows.push(...some);
  client.expect('rows of a cursor', rows.map(({ owner }) => owner), Array(3).fill(client.number));
  await sql`insert into public.ledger values (${client.number}, ${number})`;
  await sql`insert into box (owner, note) values (${client.number}, 'later')`;
  const [{ n }] = await sql`select count(*)::int as n from box where note = 'later'`;
  client.expect('the own rows', n, client.inserted + 1);
}

run(connect, turn, (sql) => sql.end());
