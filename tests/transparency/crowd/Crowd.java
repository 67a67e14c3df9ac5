import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Properties;
import java.util.Set;
import java.util.TimeZone;

/**
 * JDBC at its defaults: a statement is prepared on the server at its fifth execution; setSchema, setReadOnly,
 * setClientInfo and the JVM's time zone are the session's settings. How it speaks with ../crowd.py is told there.
 *
 * With `autocommit`, what only reads runs outside transactions.
 */
final class Crowd {
    private static final int CLIENTS = Integer.parseInt(System.getenv("CLIENTS"));
    private static final int ROUNDS = Integer.parseInt(System.getenv("ROUNDS"));
    /** What midnight is, is decided when the text is prepared; how noon is written, when it is executed. */
    private static final String NOON = "select extract(hour from timestamptz '2026-01-01 12:00+00' - timestamptz '2026-01-01 00:00')"
            + " || ' ' || (timestamptz '2026-01-01 12:00+00')::text";
    private static final String SETTINGS =
            "select current_setting('application_name'), current_setting('search_path'),"
            + " current_setting('TimeZone'), current_setting('app.client')";

    private static boolean autocommit;

    /** One client, its session, and what it has seen. */
    private static final class Client implements AutoCloseable {
        final int number;
        final String name;
        final String zone;
        final String noon;
        final Set<Integer> backends = new HashSet<>();
        int committed;
        boolean stopped;
        Connection connection;
        // Prepared once and kept: from the fifth execution on the server knows them by a name.
        PreparedStatement settings;
        PreparedStatement owner;
        PreparedStatement own;
        PreparedStatement noonText;
        PreparedStatement walk;
        PreparedStatement ledger;
        PreparedStatement put;
        PreparedStatement count;

        Client(int number) {
            int hours = number % 11 + 1;
            this.number = number;
            name = "crowd-" + number;
            zone = "Etc/GMT+" + hours;
            noon = String.format(Locale.ROOT, "%d 2026-01-01 %02d:00:00-%02d",
                    12 - hours, 12 - hours, hours);
        }

        /** The zone is the JVM's at that moment, so one connects after the other. */
        void connect() throws SQLException {
            TimeZone.setDefault(TimeZone.getTimeZone(zone));
            Properties properties = new Properties();
            properties.setProperty("user", System.getenv("PGUSER"));
            properties.setProperty("password", System.getenv("PGPASSWORD"));
            connection = DriverManager.getConnection("jdbc:postgresql://" + System.getenv("PGHOST") + ":"
                    + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE"), properties);
            connection.setSchema("crowd_" + number);
            connection.setClientInfo("ApplicationName", name);
            try (Statement statement = connection.createStatement()) {
                statement.execute("set app.client to '" + name + "'");
            }
            connection.setAutoCommit(autocommit);
            settings = connection.prepareStatement(SETTINGS);
            owner = connection.prepareStatement("select owner from box where id = ?");
            own = connection.prepareStatement("select ?::int + " + number * 1000);
            noonText = connection.prepareStatement(NOON + ", pg_backend_pid()");
            walk = connection.prepareStatement("select owner from box where note = 'first'");
            walk.setFetchSize(2);
            ledger = connection.prepareStatement("insert into public.ledger values (?, ?)");
            put = connection.prepareStatement("insert into box (owner, note) values (?, 'later')",
                    Statement.RETURN_GENERATED_KEYS);
            count = connection.prepareStatement("select count(*) from box where note = 'later'");
        }

        void expect(String what, Object got, Object wanted) {
            if (!wanted.equals(got)) {
                System.out.println("WRONG " + name + ": " + what + ": " + got + " instead of " + wanted);
            }
        }

        void fail(Exception error) {
            stopped = true;
            System.out.println("ERROR " + name + ": " + String.valueOf(error.getMessage()).replaceAll("\\s+", " "));
        }

        void turn(int number) throws SQLException {
            boolean readOnly = number % 4 == 3;
            connection.setReadOnly(readOnly);
            read(number);
            if (readOnly) {
                refusesToWrite();
            }
            if (autocommit) {
                connection.setReadOnly(false);
                connection.setAutoCommit(false);
            } else if (readOnly) {
                connection.rollback();
                connection.setReadOnly(false);
            }
            write(number);
            if (autocommit) {
                connection.setAutoCommit(true);
            }
        }

        private void refusesToWrite() throws SQLException {
            if (autocommit) {
                return; // by default the driver begins its transactions READ ONLY, and here it begins none
            }
            try {
                ledger.setInt(1, number);
                ledger.setInt(2, -1);
                ledger.executeUpdate();
                expect("a write in a read-only transaction", "taken", "refused");
            } catch (SQLException refused) {
                expect("a write in a read-only transaction", refused.getSQLState(), "25006");
            }
        }

        private void read(int turn) throws SQLException {
            expect("application_name, search_path, TimeZone, app.client", rows(settings),
                    List.of(name + ",crowd_" + number + "," + zone + "," + name));
            owner.setInt(1, turn % 3 + 1);
            expect("a shared text under the own search_path", rows(owner), List.of(String.valueOf(number)));
            own.setInt(1, turn);
            expect("the own text", rows(own), List.of(String.valueOf(number * 1000 + turn)));
            String[] seen = rows(noonText).get(0).split(",");
            expect("noon in the own zone", seen[0], noon);
            backends.add(Integer.valueOf(seen[1]));
            String mine = String.valueOf(number);
            expect("rows of a cursor", rows(walk), List.of(mine, mine, mine));
        }

        private void write(int turn) throws SQLException {
            int before = Integer.parseInt(rows(count).get(0));
            expect("the own rows before", before, committed);
            ledger.setInt(1, number);
            ledger.setInt(2, turn);
            ledger.executeUpdate();
            put.setInt(1, number);
            put.executeUpdate();
            try (ResultSet keys = put.getGeneratedKeys()) {
                expect("a key was returned", keys.next() && keys.getInt(1) > 3, true);
            }
            expect("the own rows", rows(count), List.of(String.valueOf(before + 1)));
            if (turn % 3 == 2) { // every third
                connection.rollback();
            } else {
                connection.commit();
                committed++;
            }
        }

        private static List<String> rows(PreparedStatement statement) throws SQLException {
            List<String> found = new ArrayList<>();
            try (ResultSet rows = statement.executeQuery()) {
                int columns = rows.getMetaData().getColumnCount();
                while (rows.next()) {
                    List<String> row = new ArrayList<>();
                    for (int column = 1; column <= columns; column++) {
                        row.add(rows.getString(column));
                    }
                    found.add(String.join(",", row));
                }
            }
            return found;
        }

        @Override
        public void close() throws SQLException {
            connection.close();
        }
    }

    private Crowd() {
    }

    private static void live(Client client) {
        for (int turn = 0; turn < ROUNDS && !client.stopped; turn++) {
            try {
                client.turn(turn);
            } catch (SQLException error) {
                client.fail(error);
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        autocommit = List.of(arguments).contains("autocommit");
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        List<Client> clients = new ArrayList<>();
        for (int number = 0; number < CLIENTS; number++) {
            Client client = new Client(number);
            clients.add(client);
            try {
                client.connect();
            } catch (SQLException error) {
                client.fail(error);
            }
        }
        System.out.println("ready");
        input.readLine();
        List<Thread> threads = new ArrayList<>();
        for (Client client : clients) {
            Thread thread = new Thread(() -> live(client));
            threads.add(thread);
            thread.start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        int committed = clients.stream().mapToInt(client -> client.committed).sum();
        double met = clients.stream().mapToInt(client -> client.backends.size()).average().orElse(0);
        System.out.println(String.format(Locale.ROOT, "done %d %.1f", committed, met));
        input.readLine();
        for (Client client : clients) {
            client.close();
        }
    }
}
