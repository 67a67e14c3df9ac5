// node-postgres at its defaults: statements with a name are prepared, those without go unnamed; pg-cursor reads portals.
'use strict';

const { Client, Cursor } = require('./packages.js');
const { NOON, SETTINGS, commits, run } = require('./common.js');

async function connect(client) {
  const session = new Client({ application_name: client.name, options: `-c search_path=${client.schema}` });
  await session.connect();
  await session.query(`set timezone to '${client.zone}'`);
  await session.query("select set_config('app.client', $1, false)", [client.name]);
  return session;
}

async function turn(client, session, number) {
  await session.query('begin');
  await read(client, session, number);
  await session.query('insert into public.ledger values ($1, $2)', [client.number, number]);
  await session.query({
    name: 'put', text: "insert into box (owner, note) values ($1, 'later') returning id", values: [client.number] });
  const { rows } = await session.query("select count(*)::int as n from box where note = 'later'");
  client.expect('the own rows', rows[0].n, client.inserted + 1);
  await session.query(commits(number) ? 'commit' : 'rollback');
  if (commits(number)) {
    client.committed += 1;
    client.inserted += 1;
  }
}

async function read(client, session, number) {
  const one = async (...query) => (await session.query(...query)).rows[0];
  client.expectSettings(await one({ name: 'settings', text: SETTINGS }));
  // Each client has its own statement of the same name, and all have one with the same text.
  client.expect('the own text under a shared name',
    (await one({ name: 'own', text: `select $1::int + ${client.number * 1000} as n`, values: [number] })).n,
    client.number * 1000 + number);
  client.expect('a shared text under the own search_path',
    (await one({ name: 'owner', text: 'select owner from box where id = $1', values: [number % 3 + 1] })).owner,
    client.number);
  client.expect('the same, unnamed',
    (await one('select owner from box where id = $1', [number % 3 + 1])).owner, client.number);
  client.expect('noon in the own zone', (await one({ name: 'noon', text: NOON })).noon, client.noon);
  client.backends.add((await one('select pg_backend_pid() as pid')).pid);
  const cursor = session.query(new Cursor('select owner from box where note = $1', ['first']));
  const rows = [];
  for (let some = await cursor.read(2); some.length > 0; some = await cursor.read(2)) rows.push(...some);
  await cursor.close();
  client.expect('rows of a cursor', rows.map(({ owner }) => owner), Array(3).fill(client.number));
}

run(connect, turn, (session) => session.end());
