# ActiveRecord at its defaults: SETs when it connects, every statement prepared (a1, a2, …). A class a client, each with
# its own connection.
#
# With `migrations`, each transaction is run as a migration is: under a session-level advisory lock.

require "active_record"

CLIENTS = Integer(ENV["CLIENTS"])
ROUNDS = Integer(ENV["ROUNDS"])
MIGRATIONS = ARGV.include?("migrations")
# What midnight is, is decided when the text is prepared; how noon is written, when it is executed.
NOON = "select extract(hour from timestamptz '2026-01-01 12:00+00' - timestamptz '2026-01-01 00:00')" \
       " || ' ' || (timestamptz '2026-01-01 12:00+00')::text"
SETTINGS = "select current_setting('application_name'), current_setting('search_path')," \
           " current_setting('TimeZone'), current_setting('app.client')"
# A migration locks one number a database; a number of its own lets a client go on without asking again and again.
MIGRATION_LOCK = 4_000_000_000

$stdout.sync = true

class Client
  attr_reader :number, :name, :schema, :zone, :noon, :backends
  attr_accessor :committed, :inserted, :stopped

  def initialize(number)
    hours = number % 11 + 1
    @number, @name, @schema, @zone = number, "crowd-#{number}", "crowd_#{number}", "Etc/GMT+#{hours}"
    @noon = format("%d 2026-01-01 %02d:00:00-%02d", 12 - hours, 12 - hours, hours)
    @committed = @inserted = 0
    @backends = {}
  end

  # Tells of an answer that is not this client's own.
  def expect(what, got, wanted)
    puts "WRONG #{name}: #{what}: #{got.inspect} instead of #{wanted.inspect}\n" unless got == wanted
  end

  def attempt
    yield
  rescue StandardError => error
    self.stopped = true
    puts "ERROR #{name}: #{error.class}: #{error.message.split.join(' ')}\n"
  end
end

# A model whose connection is the client's; ActiveRecord wants a class with a name.
def connect(client)
  base = Object.const_set("Crowd#{client.number}", Class.new(ActiveRecord::Base))
  base.abstract_class = true
  base.establish_connection(
    adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"], username: ENV["PGUSER"],
    password: ENV["PGPASSWORD"], database: ENV["PGDATABASE"], application_name: client.name,
    schema_search_path: client.schema, pool: 1,
    variables: { "timezone" => client.zone, "app.client" => client.name })
  box = Class.new(base) { self.table_name = "box" }
  box.connection # the first use connects
  # What ActiveRecord sets last is UTC, so the zone is the application's to set.
  box.connection.execute("set time zone '#{client.zone}'")
  box.connection_pool.release_connection # this thread's hold on it
  box
end

def turn(client, box, number)
  lock(client, box) do
    box.transaction do
      work(client, box, number)
      raise ActiveRecord::Rollback if number % 3 == 2 # every third
    end
    next if number % 3 == 2
    client.committed += 1
    client.inserted += 1
  end
end

def lock(client, box)
  return yield unless MIGRATIONS
  id = MIGRATION_LOCK + client.number
  client.expect("the lock", box.connection.get_advisory_lock(id), true)
  yield
  client.expect("the lock was there", box.connection.release_advisory_lock(id), true)
end

def work(client, box, number)
  connection = box.connection
  client.expect("application_name, search_path, TimeZone, app.client", connection.select_rows(SETTINGS).first,
                [client.name, client.schema, client.zone, client.name])
  client.expect("a shared text under the own search_path", box.find(number % 3 + 1).owner, client.number)
  client.expect("the own text", connection.select_value("select #{number} + #{client.number * 1000}"),
                client.number * 1000 + number)
  client.expect("noon in the own zone", connection.exec_query(NOON, "SQL", [], prepare: true).rows[0][0], client.noon)
  client.backends[connection.select_value("select pg_backend_pid()")] = true
  connection.exec_query("insert into public.ledger values ($1, $2)", "SQL", [client.number, number], prepare: true)
  client.expect("a key was returned", box.create!(owner: client.number, note: "later").id > 3, true)
  client.expect("the own rows", box.where(note: "later").count, client.inserted + 1)
end

def each_in_a_thread(clients)
  clients.map { |client| Thread.new { client.attempt { yield client } } }.each(&:join)
end

def pause(word)
  puts word
  $stdin.gets
end

clients = Array.new(CLIENTS) { |number| Client.new(number) }
boxes = clients.to_h { |client| [client, client.attempt { connect(client) }] }
pause "ready"
each_in_a_thread(clients) do |client|
  ROUNDS.times { |number| client.attempt { turn(client, boxes[client], number) } unless client.stopped }
  # The next thread that uses the class gets the same connection.
  boxes[client].connection_pool.release_connection
end
met = clients.sum { |client| client.backends.size }.fdiv(CLIENTS).round(1)
pause "done #{clients.sum(&:committed)} #{met}"
clients.each { |client| client.attempt { boxes[client].connection_pool.disconnect! } }
