// The packages are installed beside the driver tests.
'use strict';

const { createRequire } = require('node:module');
const path = require('node:path');

const installed = createRequire(path.join(__dirname, '../../drivers/node/main.js'));
const { Client } = installed('pg');

module.exports = { Client, Cursor: installed('pg-cursor'), postgres: installed('postgres') };
