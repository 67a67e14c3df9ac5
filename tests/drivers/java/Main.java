import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyIn;
import org.postgresql.copy.CopyManager;

/** PostgreSQL's JDBC driver through the proxy. A line a check: see ../run.py. */
public final class Main {
    private static final int CONNECTIONS_MAX = Integer.parseInt(System.getenv("CONNECTIONS_MAX"));
    private static final String UNIQUE = "jdbc_" + ProcessHandle.current().pid();

    private interface Check {
        void run() throws Exception;
    }

    private interface Work<T> {
        T with(Connection connection) throws Exception;
    }

    private interface Steps {
        void with(Connection connection) throws Exception;
    }

    public static void main(String[] arguments) {
        check("login", Main::login);
        check("wrong password", Main::wrongPassword);
        check("parameters, text", () -> parameters(false));
        check("parameters, binary", () -> parameters(true));
        check("large parameter and row", Main::largeParameterAndRow);
        check("several statements in one query", Main::severalStatements);
        check("simple query mode", Main::simpleQueryMode);
        check("prepared statement", Main::preparedStatement);
        check("a plan that is no longer valid", Main::planNoLongerValid);
        check("unnamed statements only", Main::unnamedStatementsOnly);
        check("batch", Main::batch);
        check("batch with an error", Main::batchWithAnError);
        check("generated keys", Main::generatedKeys);
        check("copy in and out", Main::copy);
        check("copy in that fails", Main::copyInThatFails);
        check("copy in given up", Main::copyInGivenUp);
        check("commit, rollback, savepoint", Main::transaction);
        check("isolation and read-only", Main::isolationAndReadOnly);
        check("autosave", Main::autosave);
        check("error, then goes on", Main::errorThenGoesOn);
        check("cancel", Main::cancel);
        check("cancel by query timeout", Main::cancelByQueryTimeout);
        check("rows in pieces", Main::rowsInPieces);
        check("notification", Main::notification);
        check("notice", Main::notice);
        check("settings are kept", Main::settingsAreKept);
        check("metadata", Main::metadata);
        check("many sessions", Main::manySessions);
    }

    private static void check(String name, Check check) {
        try {
            check.run();
            System.out.println("ok " + name);
        } catch (Exception | AssertionError error) {
            error.printStackTrace(System.out);
            System.out.println("FAILED " + name + ": " + String.valueOf(error).replaceAll("\\s+", " "));
        }
    }

    private static Connection connect(Map<String, String> options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("sslmode", System.getenv("PGSSLMODE"));
        if (System.getenv("PGSSLROOTCERT") != null) {
            properties.setProperty("sslrootcert", System.getenv("PGSSLROOTCERT"));
        }
        properties.setProperty("connectTimeout", "10");
        properties.setProperty("socketTimeout", "60");
        properties.putAll(options);
        String url = String.format("jdbc:postgresql://%s:%s/%s",
            System.getenv("PGHOST"), System.getenv("PGPORT"), System.getenv("PGDATABASE"));
        return DriverManager.getConnection(url, properties);
    }

    private static <T> T with(Map<String, String> options, Work<T> work) throws Exception {
        try (Connection connection = connect(options)) {
            return work.with(connection);
        }
    }

    private static void with(Steps steps) throws Exception {
        with(Map.of(), connection -> {
            steps.with(connection);
            return null;
        });
    }

    private static void same(Object found, Object wanted) {
        if (!wanted.equals(found)) {
            throw new AssertionError("found " + found + ", wanted " + wanted);
        }
    }

    private static void fails(String state, Check check) throws Exception {
        try {
            check.run();
        } catch (SQLException error) {
            same(error.getSQLState(), state);
            return;
        }
        throw new AssertionError("no error, wanted " + state);
    }

    /** The first column of all rows, one text. */
    private static String rows(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int index = 0; index < values.length; index++) {
                statement.setObject(index + 1, values[index]);
            }
            List<String> found = new ArrayList<>();
            try (ResultSet result = statement.executeQuery()) {
                while (result.next()) {
                    found.add(result.getString(1));
                }
            }
            return String.join(",", found);
        }
    }

    private static void execute(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    private static void login() throws Exception {
        with(connection -> same(rows(connection, "select current_user"), "demo"));
    }

    private static void wrongPassword() throws Exception {
        fails("28P01", () -> connect(Map.of("password", "wrong")).close());
    }

    /** A prepareThreshold of -1 asks for binary at once, for which the driver then names its statements. */
    private static void parameters(boolean binary) throws Exception {
        Map<String, String> options = binary
            ? Map.of("prepareThreshold", "-1", "binaryTransfer", "true")
            : Map.of("binaryTransfer", "false");
        byte[] bytes = {0, (byte) 255, 92};
        with(options, connection -> {
            String sql = "select ?::int4, ?::int8, ?::text, ?::bytea, ?::numeric, ?::float8, ?::bool, ?::int4[], ?::text";
            try (PreparedStatement statement = connection.prepareStatement(sql)) {
                for (int round = 0; round < 3; round++) {
                    statement.setInt(1, 42);
                    statement.setLong(2, 1L << 62);
                    statement.setString(3, "ü and '");
                    statement.setBytes(4, bytes);
                    statement.setBigDecimal(5, new BigDecimal("12345.678900"));
                    statement.setDouble(6, 1.5);
                    statement.setBoolean(7, true);
                    statement.setArray(8, connection.createArrayOf("int4", new Integer[] {1, null, 3}));
                    statement.setString(9, null);
                    try (ResultSet result = statement.executeQuery()) {
                        result.next();
                        same(result.getInt(1), 42);
                        same(result.getLong(2), 1L << 62);
                        same(result.getString(3), "ü and '");
                        same(Arrays.equals(result.getBytes(4), bytes), true);
                        same(result.getBigDecimal(5), new BigDecimal("12345.678900"));
                        same(result.getDouble(6), 1.5);
                        same(result.getBoolean(7), true);
                        same(Arrays.toString((Object[]) result.getArray(8).getArray()), "[1, null, 3]");
                        same(result.getString(9) == null, true);
                    }
                }
            }
            return null;
        });
    }

    private static void largeParameterAndRow() throws Exception {
        byte[] blob = new byte[5_000_000];
        Arrays.fill(blob, (byte) 0xa7);
        with(connection -> {
            try (PreparedStatement statement = connection.prepareStatement("select ?::bytea")) {
                statement.setBytes(1, blob);
                try (ResultSet result = statement.executeQuery()) {
                    result.next();
                    same(Arrays.equals(result.getBytes(1), blob), true);
                }
            }
        });
    }

    private static void severalStatements() throws Exception {
        with(connection -> {
            try (Statement statement = connection.createStatement()) {
                int results = 0;
                boolean more = statement.execute("select 1; select 2; select 3");
                while (more) {
                    results++;
                    try (ResultSet result = statement.getResultSet()) {
                        result.next();
                        same(result.getInt(1), results);
                    }
                    more = statement.getMoreResults(Statement.KEEP_CURRENT_RESULT);
                }
                same(results, 3);
            }
        });
    }

    private static void simpleQueryMode() throws Exception {
        with(Map.of("preferQueryMode", "simple"), connection -> {
            same(rows(connection, "select ?::int + 1", 41), "42");
            connection.setAutoCommit(false);
            same(rows(connection, "select ?::text", "ü and '"), "ü and '");
            connection.commit();
            return null;
        });
    }

    private static void preparedStatement() throws Exception {
        with(connection -> {
            try (PreparedStatement statement = connection.prepareStatement("select ?::int * 2")) {
                for (int number = 0; number < 20; number++) { // after five the driver names it
                    connection.setAutoCommit(number % 3 != 0);
                    statement.setInt(1, number);
                    try (ResultSet result = statement.executeQuery()) {
                        result.next();
                        same(result.getInt(1), 2 * number);
                    }
                    if (!connection.getAutoCommit()) {
                        connection.commit();
                    }
                }
                connection.setAutoCommit(true);
            }
            // More than one where a proxy shares them: other sessions prepare the same text.
            same(rows(connection, "select count(*) > 0 from pg_prepared_statements where statement like '%* 2'"), "t");
        });
    }

    /** The server says 0A000; the driver forgets all its statements and tries again. */
    private static void planNoLongerValid() throws Exception {
        String table = UNIQUE + "_plan";
        with(connection -> {
            execute(connection, "create table " + table + " (id int)");
            try (PreparedStatement statement = connection.prepareStatement("select * from " + table)) {
                for (int round = 0; round < 7; round++) {
                    statement.executeQuery().close();
                }
                execute(connection, "alter table " + table + " add column note text");
                try (ResultSet result = statement.executeQuery()) {
                    same(result.getMetaData().getColumnCount(), 2);
                }
            } finally {
                execute(connection, "drop table " + table);
            }
        });
    }

    private static void unnamedStatementsOnly() throws Exception {
        with(Map.of("prepareThreshold", "0"), connection -> {
            for (int number = 0; number < 20; number++) {
                String query = "select ?::int + 1 /* never named */";
                same(rows(connection, query, number), String.valueOf(number + 1));
            }
            // Others' statements may be there: a proxy shares them.
            String named = "select count(*) from pg_prepared_statements where name <> '' and statement like '%+ 1 /* never%'";
            same(rows(connection, named), "0");
            return null;
        });
    }

    private static void batch() throws Exception {
        String table = UNIQUE + "_batch";
        with(connection -> {
            execute(connection, "create table " + table + " (id int, note text)");
            try (PreparedStatement statement = connection.prepareStatement("insert into " + table + " values (?, ?)")) {
                for (int number = 0; number < 3000; number++) {
                    statement.setInt(1, number);
                    statement.setString(2, "n".repeat(100));
                    statement.addBatch();
                }
                same(Arrays.stream(statement.executeBatch()).sum(), 3000);
            }
            same(rows(connection, "select sum(id) from " + table), "4498500");
            execute(connection, "drop table " + table);
        });
    }

    private static void batchWithAnError() throws Exception {
        String table = UNIQUE + "_batch";
        with(connection -> {
            execute(connection, "create table " + table + " (id int primary key)");
            connection.setAutoCommit(false);
            try (PreparedStatement statement = connection.prepareStatement("insert into " + table + " values (?)")) {
                for (int id : new int[] {1, 2, 2, 3}) {
                    statement.setInt(1, id);
                    statement.addBatch();
                }
                statement.executeBatch();
                throw new AssertionError("no error");
            } catch (BatchUpdateException error) {
                same(error.getSQLState(), "23505");
            }
            connection.rollback();
            connection.setAutoCommit(true);
            same(rows(connection, "select count(*) from " + table), "0");
            execute(connection, "drop table " + table);
        });
    }

    private static void generatedKeys() throws Exception {
        String table = UNIQUE + "_keys";
        with(connection -> {
            execute(connection, "create table " + table + " (id serial, note text)");
            try (PreparedStatement statement = connection.prepareStatement(
                    "insert into " + table + " (note) values (?), (?)", Statement.RETURN_GENERATED_KEYS)) {
                statement.setString(1, "a");
                statement.setString(2, "b");
                same(statement.executeUpdate(), 2);
                try (ResultSet keys = statement.getGeneratedKeys()) {
                    keys.next();
                    same(keys.getInt("id"), 1);
                }
            } finally {
                execute(connection, "drop table " + table);
            }
        });
    }

    private static CopyManager copies(Connection connection) throws SQLException {
        return connection.unwrap(PGConnection.class).getCopyAPI();
    }

    private static void copy() throws Exception {
        String table = UNIQUE + "_copy";
        StringBuilder lines = new StringBuilder();
        for (int number = 0; number < 5000; number++) {
            lines.append(number).append("\tline ").append(number).append('\n');
        }
        with(connection -> {
            execute(connection, "create table " + table + " (id int, note text)");
            same(copies(connection).copyIn("copy " + table + " from stdin", new StringReader(lines.toString())), 5000L);
            StringWriter output = new StringWriter();
            same(copies(connection).copyOut("copy (select * from " + table + " order by id) to stdout", output), 5000L);
            same(output.toString().equals(lines.toString()), true);
            execute(connection, "drop table " + table);
        });
    }

    private static void copyInThatFails() throws Exception {
        String table = UNIQUE + "_bad";
        with(connection -> {
            execute(connection, "create table " + table + " (id int)");
            fails("22P02", () ->
                copies(connection).copyIn("copy " + table + " from stdin", new StringReader("1\nbad\n")));
            same(rows(connection, "select count(*) from " + table), "0");
            execute(connection, "drop table " + table);
        });
    }

    private static void copyInGivenUp() throws Exception {
        String table = UNIQUE + "_stop";
        with(connection -> {
            execute(connection, "create table " + table + " (id int)");
            CopyIn copy = copies(connection).copyIn("copy " + table + " from stdin");
            copy.writeToCopy("1\n".getBytes(), 0, 2);
            copy.cancelCopy();
            same(rows(connection, "select count(*) from " + table), "0");
            execute(connection, "drop table " + table);
        });
    }

    private static void transaction() throws Exception {
        String table = UNIQUE + "_tx";
        with(connection -> {
            execute(connection, "create table " + table + " (id int)");
            connection.setAutoCommit(false);
            execute(connection, "insert into " + table + " values (1)");
            connection.commit();
            execute(connection, "insert into " + table + " values (2)");
            connection.rollback();
            execute(connection, "insert into " + table + " values (3)");
            Savepoint savepoint = connection.setSavepoint();
            fails("22012", () -> rows(connection, "select 1/0"));
            fails("25P02", () -> rows(connection, "select 1"));
            connection.rollback(savepoint);
            execute(connection, "insert into " + table + " values (4)");
            connection.commit();
            connection.setAutoCommit(true);
            same(rows(connection, "select id from " + table + " order by id"), "1,3,4");
            execute(connection, "drop table " + table);
        });
    }

    /** JDBC sets both by SET SESSION CHARACTERISTICS, outside a transaction. */
    private static void isolationAndReadOnly() throws Exception {
        with(connection -> {
            connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            connection.setReadOnly(true);
            connection.setAutoCommit(false);
            for (int round = 0; round < 3; round++) {
                same(rows(connection, "show transaction_isolation"), "serializable");
                fails("25006", () -> execute(connection, "create table " + UNIQUE + "_ro (id int)"));
                connection.rollback();
            }
            connection.setReadOnly(false);
            connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
            same(rows(connection, "show transaction_read_only"), "off");
            connection.commit();
        });
    }

    /** A savepoint before each statement, and back to it after an error. */
    private static void autosave() throws Exception {
        String table = UNIQUE + "_save";
        with(Map.of("autosave", "always"), connection -> {
            execute(connection, "create table " + table + " (id int)");
            connection.setAutoCommit(false);
            for (int id = 0; id < 10; id++) {
                execute(connection, "insert into " + table + " values (" + id + ")");
                fails("22012", () -> rows(connection, "select 1/?::int", 0));
            }
            connection.commit();
            connection.setAutoCommit(true);
            same(rows(connection, "select count(*) from " + table), "10");
            execute(connection, "drop table " + table);
            return null;
        });
    }

    private static void errorThenGoesOn() throws Exception {
        with(connection -> {
            for (int round = 0; round < 7; round++) {
                fails("22012", () -> rows(connection, "select 1/?::int", 0));
                fails("42601", () -> execute(connection, "selekt"));
                same(rows(connection, "select ?::text", "after"), "after");
            }
        });
    }

    private static void cancelled(Connection connection, Statement statement) throws Exception {
        long started = System.nanoTime();
        fails("57014", () -> statement.execute("select pg_sleep(50)"));
        same(TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - started) < 15, true);
        same(rows(connection, "select ?::text", "after"), "after");
    }

    private static void cancel() throws Exception {
        ScheduledExecutorService later = Executors.newSingleThreadScheduledExecutor();
        try {
            with(connection -> {
                try (Statement statement = connection.createStatement()) {
                    ScheduledFuture<?> cancel = later.schedule((Callable<Void>) () -> {
                        statement.cancel();
                        return null;
                    }, 500, TimeUnit.MILLISECONDS);
                    cancelled(connection, statement);
                    cancel.get(10, TimeUnit.SECONDS);
                }
            });
        } finally {
            later.shutdownNow();
        }
    }

    private static void cancelByQueryTimeout() throws Exception {
        with(connection -> {
            try (Statement statement = connection.createStatement()) {
                statement.setQueryTimeout(1);
                cancelled(connection, statement);
            }
        });
    }

    /** A named portal, read by several Execute messages with a Sync between. */
    private static void rowsInPieces() throws Exception {
        with(connection -> {
            connection.setAutoCommit(false);
            try (PreparedStatement statement = connection.prepareStatement("select generate_series(1, ?)")) {
                statement.setFetchSize(100);
                statement.setInt(1, 1234);
                long total = 0;
                try (ResultSet result = statement.executeQuery()) {
                    while (result.next()) {
                        total += result.getInt(1);
                    }
                }
                same(total, 1234L * 1235 / 2);
            }
            connection.commit();
        });
    }

    private static void notification() throws Exception {
        with(listener -> with(sender -> {
            execute(listener, "listen " + UNIQUE);
            rows(sender, "select pg_notify(?, ?)", UNIQUE, "news");
            PGNotification[] heard = listener.unwrap(PGConnection.class).getNotifications(10_000);
            same(heard != null && heard.length == 1, true);
            same(heard[0].getParameter(), "news");
        }));
    }

    private static void notice() throws Exception {
        with(connection -> {
            try (Statement statement = connection.createStatement()) {
                statement.execute("do $$ begin raise notice 'hello'; end $$");
                same(statement.getWarnings().getMessage(), "hello");
            }
        });
    }

    private static void settingsAreKept() throws Exception {
        Map<String, String> options = Map.of("ApplicationName", "jdbc-kept", "options", "-c statement_timeout=54321");
        with(options, connection -> {
            execute(connection, "set work_mem = '9MB'");
            connection.setSchema("pg_catalog");
            connection.setAutoCommit(false);
            for (int round = 0; round < 3; round++) {
                rows(connection, "select 1");
                connection.commit();
            }
            String found = rows(connection, "select concat_ws(' ', current_setting('application_name'),"
                + " current_setting('statement_timeout'), current_setting('work_mem'), current_setting('search_path'))");
            same(found, "jdbc-kept 54321ms 9MB pg_catalog");
            connection.commit();
            return null;
        });
    }

    private static void metadata() throws Exception {
        with(connection -> {
            same(connection.getMetaData().getDatabaseProductName(), "PostgreSQL");
            try (ResultSet tables = connection.getMetaData().getTables(null, "pg_catalog", "pg_class", null)) {
                same(tables.next(), true);
            }
        });
    }

    /** More sessions than database connections; with no named statement nothing pins. */
    private static void manySessions() throws Exception {
        int sessions = 4 * CONNECTIONS_MAX;
        ExecutorService workers = Executors.newFixedThreadPool(sessions);
        try {
            List<Future<Void>> outcomes = new ArrayList<>();
            for (int session = 0; session < sessions; session++) {
                int number = session;
                outcomes.add(workers.submit(() -> with(Map.of("prepareThreshold", "0"), connection -> {
                    connection.setAutoCommit(false);
                    for (int round = 0; round < 10; round++) {
                        rows(connection, "select pg_sleep(0.002)");
                        same(rows(connection, "select ?::int", 1000 * number + round), String.valueOf(1000 * number + round));
                        connection.commit();
                    }
                    return null;
                })));
            }
            for (Future<Void> outcome : outcomes) {
                outcome.get(60, TimeUnit.SECONDS);
            }
        } finally {
            workers.shutdownNow();
        }
    }

    private Main() {}
}
