-- One atomic step on the state of one tag. `store.py` says what each step means, `memory_store.py` does the same in
-- Python, and the same tests drive both. Every key begins with KEYS[1] (`prefix:{tag}`), so all fall on one slot, and
-- every key has an end (`KEEP`, or its window's): a limit, a worker or a workspace that is gone leaves nothing.
--   :t         hash   e era, d when something may be due, n slots in use, c capacity, k waiting, s sequence,
--                     v virtual time, g gap between two slots that came free (ms), l when the last one did
--   :w         zset   worker -> lease's end          :h:<worker>  hash  entry -> record (msgpack), '' -> renewed at
--   :o :oz     hash, zset: what dead workers reserved of money
--   :q         zset   sequence and flow -> start tag :r           hash  flow -> its member in :q
--   :l:<flow>  zset   worker|entry -> sequence       :f           zset  flow -> finish tag
--   :u         zset   worker|entry -> claimed until
--   :s:<name> :m:<name> :i:<name>  hash  a counter: sliding, calendar, held
--   :p:<name> :pz:<name>  hash, zset: what ended before it was seeded came to, and when it ended
--   :e:<generation>:<name>  set  entries that it has counted
-- The era begins when the tag's state is missing or of another run of the server. What is of another era is untrue:
-- slots and reservations are declared again, a calendar's sum is seeded again. What ended before it was seeded stays
-- true: the seeding leaves out what the sum holds. Numbers are doubles: what a step asks for is at most 2^53, and no sum
-- of two is made where it could be more.
-- A record: {items, seat, flow, size, weight}; an item: {check, taken, bucket, gone}; a check as `store.Check`.
-- ARGV: the step's name; a msgpack list of the worker, a test's clock (ms) or nil, and the step's own arguments; the
-- server's run id. While a slot moves in a cluster, KEYS[1], which is no key of its own, sends every step to where the
-- slot goes, and there each call may name one key. What is answered is msgpack (`store.Reply`, `store.Presence`), a number, or 0 for an end like any other.
-- Only what a step needs is made in it: the rarer parts are functions that make theirs.
local base, op, payload = KEYS[1], ARGV[1], cmsgpack.unpack(ARGV[2])
local worker, run = payload[1], ARGV[3]
local call, floor, max, min = redis.call, math.floor, math.max, math.min
local LEASE, RENEW_AFTER, CLAIM, BUCKETS, ORPHAN, COUNTED = 15000, 1000, 2000, 60, 3600000, 600000
local FIRST_RETRY, MOST_RETRY, NEVER = 1000, 60000, -1
local HOUR, DAY, KEEP = 3600000, 86400000, 8 * 86400000
local MOST, MOST_UNSETTLED = 9007199254740991, 50000
-- A check's members by place.
local NAME, KIND, METER, AMOUNT, TAKE, REFUSES, ALERTS, WIDTH, STARTS, ENDS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10

-- The server's clock; a test brings its own.
local now = payload[2]
if not now then
  local clock = call('TIME')
  now = tonumber(clock[1]) * 1000 + floor(tonumber(clock[2]) / 1000)
end
local tag, mine = base .. ':t', base .. ':h:' .. worker
local state = call('HMGET', tag, 'e', 'd', 'n', 'c', 'k')
local era = state[1]
local known_state = {d = tonumber(state[2] or 0), n = tonumber(state[3] or 0), c = tonumber(state[4] or 0),
  k = tonumber(state[5] or 0)}
local due, in_use, capacity, waiting = known_state.d, known_state.n, known_state.c, known_state.k
local grants = {}
-- Claims, seedings and places are answered by a number: what is granted in them is told by message.
local asker = (op == 'claim' or op == 'seed' or op == 'place') and '' or worker

-- All that follows is one function: what it makes takes its names from it by reference, where each closure of the script
-- itself would search the stack for them.
local function step()
  local function keep(...)
    for _, key in ipairs({...}) do call('PEXPIRE', key, KEEP) end
  end

  local function unlink(...)
    for _, key in ipairs({...}) do call('UNLINK', key) end
  end

  local function due_at(ms)
    if due == 0 or ms < due then due = ms end
  end

  local UNDO = {0, 0, true, 0}
  local made = {}

  -- The alert level that was passed just now, told once a window; 0 for none.
  local function alert_level(c, check, n)
    if check[KIND] == 'held' then return 0 end
    if check[KIND] == 'sliding' then
      if n < check[AMOUNT] or (c.told >= 0 and c.bucket - c.told <= BUCKETS) then return 0 end
      c.told = c.bucket
      call('HSET', c.key, 'x', c.bucket)
      call('PEXPIRE', c.key, (BUCKETS + 2) * c.width)
      return 100
    end
    local level = 0
    for _, l in ipairs({50, 80, 100}) do if n * 100 >= l * check[AMOUNT] then level = l end end
    if level <= c.told then return 0 end
    c.told = level
    call('HSET', c.key, 'x', level)
    return level
  end

  -- Counters -----------------------------------------------------------------------------------------------------------
  -- What was taken in the last window, by sixtieths of it, as a step takes it.
  local function sliding()
    if made.sliding then return made.sliding end
    local function load(check)
      local width = check[WIDTH] * 1000
      local bucket = floor(now / width)
      local oldest = bucket - BUCKETS
      local key = base .. ':s:' .. check[NAME]
      local known = call('HMGET', key, 't', 's', bucket, 'x')
      local c = {key = key, width = width, bucket = bucket, oldest = tonumber(known[1]), total = tonumber(known[2] or 0),
        here = tonumber(known[3] or 0), told = tonumber(known[4] or -1), is_new = not known[3], is_begun = known[1]}
      if not c.oldest then
        c.oldest = oldest
      elseif c.oldest > bucket or oldest - c.oldest > BUCKETS then
        -- All of it is older than the window, or the clock went back by more than one.
        call('DEL', key)
        c.oldest, c.total, c.here, c.told, c.is_new, c.is_begun = oldest, 0, 0, -1, true, false
      elseif c.oldest < oldest then
        local fields = {}
        for b = c.oldest, oldest - 1 do fields[#fields + 1] = b end
        local counts = call('HMGET', key, unpack(fields))
        for i = 1, #fields do if counts[i] then c.total = c.total - tonumber(counts[i]) end end
        call('HDEL', key, unpack(fields))
        c.oldest = oldest
        call('HSET', key, 't', oldest, 's', c.total)
      end
      c.value = c.total
      return c
    end

    local function count(c, n)
      c.here, c.total = c.here + n, c.total + n
      c.value = c.total
      call('HSET', c.key, c.bucket, c.here, 's', c.total)
      if not c.is_begun then
        c.is_begun = true
        call('HSET', c.key, 't', c.oldest)
      end
      if c.is_new then call('PEXPIRE', c.key, (BUCKETS + 2) * c.width) end
      c.is_new = false
      return c.bucket
    end
    made.sliding = {load = load, count = count}
    return made.sliding
  end

  -- The same, as a step gives it back, or says when there will be room.
  local function sliding_rest()
    if made.sliding_rest then return made.sliding_rest end
    -- Counts more in a bucket, or gives back. False where it has left the window.
    local function adjust(check, bucket, n)
      local key = base .. ':s:' .. check[NAME]
      local known = call('HMGET', key, bucket, 's', 't')
      if not known[1] or tonumber(known[3]) > bucket then return false end
      n = max(-tonumber(known[1]), min(n, MOST - tonumber(known[2])))
      if n ~= 0 then call('HSET', key, bucket, known[1] + n, 's', known[2] + n) end
      return true
    end

    local function room(c, needed)
      local fields = {}
      for b = c.bucket - BUCKETS, c.bucket do fields[#fields + 1] = b end
      local freed = 0
      for i, n in ipairs(call('HMGET', c.key, unpack(fields))) do
        if n then freed = freed + tonumber(n) end
        if freed >= needed then return (c.bucket + i) * c.width - now end
      end
      return (BUCKETS + 1) * c.width
    end
    made.sliding_rest = {adjust = adjust, room = room}
    return made.sliding_rest
  end

  -- What was used and is reserved between two instants.
  local function calendar()
    if made.calendar then return made.calendar end
    -- The calendar's counter as it stands, whatever its window.
    local function load(check)
      local key = base .. ':m:' .. check[NAME]
      local known = call('HMGET', key, 'a', 'z', 'u', 'r', 'i', 'k', 'x', 'd', 'y', 'b')
      local c = {key = key, starts = tonumber(known[1] or -1), ends = tonumber(known[2] or -1),
        used = known[6] == era and tonumber(known[3]) or 0, reserved = known[5] == era and tonumber(known[4]) or 0,
        is_known = known[6] == era, is_ours = known[5] == era, told = tonumber(known[7] or 0), kept = tonumber(known[8] or 0),
        seen_since = tonumber(known[9] or 0), dropped = tonumber(known[10] or 0)}
      c.is_window = c.starts == check[STARTS] and c.ends == check[ENDS]
      c.value = c.used + c.reserved
      return c
    end

    -- `is_spent` where what is used changed as well.
    local function write(c, is_spent)
      c.value = c.used + c.reserved
      if c.is_ours and not is_spent then
        call('HSET', c.key, 'r', c.reserved)
      else
        c.is_ours = true
        call('HSET', c.key, 'u', c.used, 'r', c.reserved, 'i', era)
      end
      if c.ends == 0 and now - c.kept > DAY then
        c.kept = now
        call('HSET', c.key, 'd', now)
        call('PEXPIRE', c.key, KEEP)
      end
    end

    -- The counter in the check's window: after a window that is known it begins at nothing, else it is not known.
    local function roll(c, check)
      if c.is_window then return c end
      c.is_known = c.is_known and c.ends > 0 and c.ends <= check[STARTS]
      c.starts, c.ends, c.used, c.reserved, c.told, c.kept, c.is_window = check[STARTS], check[ENDS], 0, 0, 0, 0, true
      c.seen_since, c.dropped = 0, 0
      unlink(c.key, base .. ':p:' .. check[NAME], base .. ':pz:' .. check[NAME])
      call('HSET', c.key, 'a', c.starts, 'z', c.ends, 'x', 0, 'k', c.is_known and era or '')
      write(c, true)
      if c.ends > 0 then call('PEXPIREAT', c.key, c.ends * 1000 + DAY) end
      return c
    end

    local function counted(name, ago) return base .. ':e:' .. (floor(now / COUNTED) - ago) .. ':' .. name end

    local function has_counted(name, entry)
      return call('SISMEMBER', counted(name, 0), entry) == 1 or call('SISMEMBER', counted(name, 1), entry) == 1
    end

    -- Counts an entry once: false where it was.
    local function count_once(name, entry)
      if call('SISMEMBER', counted(name, 1), entry) == 1 then return false end
      local set = counted(name, 0)
      if call('SADD', set, entry) == 0 then return false end
      call('PEXPIRE', set, 2 * COUNTED)
      return true
    end

    local function note_counted(name, entries)
      for from = 1, #entries, 500 do
        call('SADD', counted(name, 0), unpack(entries, from, min(#entries, from + 499)))
      end
      if #entries > 0 then call('PEXPIRE', counted(name, 0), 2 * COUNTED) end
    end

    -- Ended before the counter was seeded. Those that ended last are kept; of the others the latest end (`b`).
    local function keep_unsettled(c, name, entry, came_to, ended_ms)
      local amounts, ends = base .. ':p:' .. name, base .. ':pz:' .. name
      if call('HSETNX', amounts, entry, came_to) == 0 then return end
      call('ZADD', ends, ended_ms, entry)
      call('PEXPIRE', amounts, DAY)
      call('PEXPIRE', ends, DAY)
      if call('ZCARD', ends) > MOST_UNSETTLED then
        local first = call('ZPOPMIN', ends)
        call('HDEL', amounts, first[1])
        c.dropped = max(c.dropped, tonumber(first[2]))
        call('HSET', c.key, 'b', c.dropped)
      end
    end

    local function finish(entry, check, n, came_to, ended_ms)
      local c = load(check)
      if not c.is_window then return end
      local reserved = max(0, c.reserved - n)
      if came_to and not c.is_known then
        keep_unsettled(c, check[NAME], entry, came_to, ended_ms > 0 and ended_ms or now)
        came_to = nil
      elseif came_to and ((ended_ms > 0 and ended_ms < c.seen_since) or not count_once(check[NAME], entry)) then
        came_to = nil
      end
      if came_to or reserved ~= c.reserved then
        c.reserved, c.used = reserved, min(MOST, c.used + (came_to or 0))
        write(c, came_to)
      end
      if came_to then
        local level = check[ALERTS] and alert_level(c, check, c.used) or 0
        if level > 0 then return {check[NAME], level, c.used, check[AMOUNT]} end
      end
    end
    made.calendar = {load = load, write = write, roll = roll, has_counted = has_counted, note_counted = note_counted,
      finish = finish}
    return made.calendar
  end

  local function load_held(check)
    local key = base .. ':i:' .. check[NAME]
    local known = call('HMGET', key, 'n', 'i', 'd')
    local is_true = known[2] == era
    return {key = key, value = is_true and tonumber(known[1]) or 0, kept = is_true and tonumber(known[3]) or 0}
  end

  local function is_now(check)
    local second = floor(now / 1000)
    return check[ENDS] == 0 or (check[STARTS] <= second and second < check[ENDS])
  end

  -- The check's counter, in the check's window, which is the one of now. Loaded once a step, written whole.
  local function load(check)
    if check[KIND] == 'sliding' then return sliding().load(check) end
    if check[KIND] == 'held' then return load_held(check) end
    return calendar().roll(calendar().load(check), check)
  end

  -- Up to what a check lets its counter rise. One that only watches, as far as can be counted.
  local function room_of(check) return check[REFUSES] and min(check[AMOUNT], MOST) or MOST end

  -- Counts `n`. Returns the bucket that it was counted in.
  local function count(c, check, n)
    if check[KIND] == 'sliding' then return sliding().count(c, n) end
    c.value = c.value + n
    if check[KIND] == 'calendar' then
      c.reserved = c.reserved + n
      calendar().write(c)
    elseif now - c.kept > HOUR then
      c.kept = now
      call('HSET', c.key, 'n', c.value, 'i', era, 'd', now)
      call('PEXPIRE', c.key, DAY)
    else
      call('HSET', c.key, 'n', c.value)
    end
    return 0
  end

  -- Seats --------------------------------------------------------------------------------------------------------------
  -- Who waits, and to whom the next free slot goes.
  local function queue()
    if made.queue then return made.queue end
    local function line(flow) return base .. ':l:' .. flow end
    local known = call('HMGET', tag, 'v', 'g', 'l')
    local virtual, gap, freed_at = tonumber(known[1] or 0), tonumber(known[2] or 0), tonumber(known[3] or 0)

    local function remember() call('HSET', tag, 'v', virtual, 'g', gap, 'l', freed_at) end

    local function left_line(flow)
      waiting = max(0, waiting - 1)
      if call('EXISTS', line(flow)) == 0 then
        local member = call('HGET', base .. ':r', flow)
        if member then call('ZREM', base .. ':q', member) end
        call('HDEL', base .. ':r', flow)
      end
      if waiting == 0 then
        unlink(base .. ':f', base .. ':q', base .. ':r')
        virtual = 0
      end
    end

    -- Gives free slots to the next in the queue. The asker's own are held at once: it reads this answer.
    local function grant()
      while waiting > 0 and in_use < capacity do
        local head = call('ZRANGE', base .. ':q', 0, 0, 'WITHSCORES')
        if not head[1] then
          waiting = 0
          return
        end
        local flow, start = string.sub(head[1], 17), tonumber(head[2])
        local member = call('ZPOPMIN', line(flow))[1] or '|'
        local at = string.find(member, '|', 1, true)
        local to, entry = string.sub(member, 1, at - 1), string.sub(member, at + 1)
        local packed = call('HGET', base .. ':h:' .. to, entry)
        -- A ticket without its hold was lost with a part of the store.
        if packed then
          local record = cmsgpack.unpack(packed)
          local finished = start + record[4] / record[5]
          virtual = start
          call('ZADD', base .. ':q', finished, head[1])
          call('ZREMRANGEBYSCORE', base .. ':f', '-inf', virtual)
          call('ZADD', base .. ':f', finished, flow)
          keep(base .. ':f')
          in_use = in_use + 1
          if to == asker then
            record[2] = 'held'
          else
            record[2] = 'granted'
            call('ZADD', base .. ':u', now + CLAIM, member)
            keep(base .. ':u')
            due_at(now + CLAIM)
            call('PUBLISH', string.sub(base, 1, string.find(base, ':{', 1, true)) .. 'grants:' .. to, base .. '\n' .. entry)
          end
          call('HSET', base .. ':h:' .. to, entry, cmsgpack.pack(record))
          grants[#grants + 1] = {to, entry}
        end
        left_line(flow)
      end
    end

    -- A place in the queue. False where that is full.
    local function join(entry, seat, record)
      if waiting >= seat[2] then return false end
      local flow, sequence = seat[3], call('HINCRBY', tag, 's', 1)
      record[2], record[3], record[4], record[5] = 'queued', flow, max(1, seat[5]), max(1, seat[4])
      if call('EXISTS', line(flow)) == 0 then
        local member = string.format('%016.0f', sequence) .. flow
        local start = max(virtual, tonumber(call('ZSCORE', base .. ':f', flow) or 0))
        call('ZADD', base .. ':q', start, member)
        call('HSET', base .. ':r', flow, member)
      end
      call('ZADD', line(flow), sequence, worker .. '|' .. entry)
      keep(line(flow), base .. ':q', base .. ':r')
      -- The pace is measured from when somebody waits.
      if waiting == 0 then freed_at = now end
      waiting = waiting + 1
      return true
    end

    local function quit(of, entry, record)
      if call('ZREM', line(record[3]), of .. '|' .. entry) == 1 then left_line(record[3]) end
    end

    local function pace()
      gap = gap > 0 and gap * 0.9 + (now - freed_at) * 0.1 or now - freed_at
      freed_at = now
    end

    local function retry_ms()
      local each = gap > 0 and gap or FIRST_RETRY / max(1, waiting)
      return floor(min(MOST_RETRY, max(FIRST_RETRY, each * (waiting + 1))))
    end

    -- How many of the flow's line are before this one, and as many of each other line. 0 where it does not wait.
    local function place(flow, entry)
      local before = call('ZRANK', line(flow), worker .. '|' .. entry)
      if not before then return 0 end
      local up_to = before + 1
      for _, member in ipairs(call('ZRANGE', base .. ':q', 0, -1)) do
        local other = string.sub(member, 17)
        if other ~= flow then up_to = up_to + min(before, call('ZCARD', line(other))) end
      end
      return up_to
    end

    made.queue = {remember = remember, grant = grant, join = join, quit = quit, pace = pace, retry_ms = retry_ms,
      place = place}
    return made.queue
  end

  -- Gives free slots to the next in the queue.
  local function grant()
    if waiting > 0 and in_use < capacity then queue().grant() end
  end

  -- Replies ------------------------------------------------------------------------------------------------------------
  -- What is left out at the end is empty (`store.Reply`).
  local function answer(said, seat, at, retry, used, unseeded, alerts)
    grant()
    local told = {said, now, seat or 'none', at or -1, retry or 0, used or {}}
    if grants[1] or (alerts and alerts[1]) then
      told[7], told[8], told[9] = unseeded or {}, alerts or {}, grants
    elseif unseeded then
      told[7] = unseeded
    end
    return cmsgpack.pack(told)
  end

  -- What an end is answered: nothing, where there is nothing to tell.
  local function ended_answer(alerts)
    grant()
    if grants[1] or alerts[1] then return answer('taken', nil, nil, nil, nil, nil, alerts) end
    return 0
  end

  -- What was taken is given back.
  local function ending()
    if made.ending then return made.ending end
    local function amount_of(spent, meter)
      if meter == 'requests' then return 1 end
      if meter == 'tokens' then return spent[1] end
      return meter == 'cost' and spent[2] or 0
    end

    -- Ends what one item took. `came_to` nil: it comes to nothing at all; `ended_ms` 0: now. Returns an alert or nil.
    local function finish(entry, item, came_to, ended_ms)
      local check, n = item[1], item[2]
      if check[KIND] == 'calendar' then return calendar().finish(entry, check, n, came_to, ended_ms) end
      if check[KIND] == 'sliding' then
        -- Only what this entry has in its bucket is its to give back.
        local more = max(-n, came_to and came_to - (item[4] or 0) - n or -n)
        if more ~= 0 then sliding_rest().adjust(check, item[3], more) end
        return
      end
      local c = load_held(check)
      if c.value > 0 then call('HSET', c.key, 'n', max(0, c.value - n)) end
    end

    local function finish_all(entry, items, spent)
      local alerts = {}
      for _, item in ipairs(items) do
        local came_to = nil
        if not spent[3] then came_to = amount_of(spent, item[1][METER]) end
        local alert = finish(entry, item, came_to, spent[4] or 0)
        if alert then alerts[#alerts + 1] = alert end
      end
      return alerts
    end

    -- `is_pace` where it was served to its end: that says how soon the next slot may come free.
    local function leave(of, entry, record, is_pace)
      if record[2] == 'queued' then
        queue().quit(of, entry, record)
      elseif record[2] ~= 'none' then
        if record[2] == 'granted' then call('ZREM', base .. ':u', of .. '|' .. entry) end
        in_use = max(0, in_use - 1)
        if is_pace and waiting > 0 then queue().pace() end
      end
      record[2] = 'none'
    end

    -- What a dead worker reserved for an entry, which is taken from the store; nil for none.
    local function adopted(entry)
      local packed = call('HGET', base .. ':o', entry)
      if not packed then return nil end
      call('HDEL', base .. ':o', entry)
      call('ZREM', base .. ':oz', entry)
      return cmsgpack.unpack(packed)
    end

    -- What an entry that the store knows nothing of is counted by: money, in the window of now.
    local function unknown(checks)
      local items = {}
      for _, check in ipairs(checks) do
        if check[KIND] == 'calendar' and is_now(check) then
          calendar().roll(calendar().load(check), check)
          items[#items + 1] = {check, 0, 0, 0}
        end
      end
      return items
    end

    -- Ends an entry, whoever held it last. Returns alerts.
    local function ended(entry, spent, checks)
      local packed = call('HGET', mine, entry)
      if packed then
        local record = cmsgpack.unpack(packed)
        call('HDEL', mine, entry)
        leave(worker, entry, record, not spent[3])
        return finish_all(entry, record[1], spent)
      end
      return finish_all(entry, adopted(entry) or unknown(checks), spent)
    end
    made.ending = {leave = leave, amount_of = amount_of, finish = finish, finish_all = finish_all, adopted = adopted,
      ended = ended}
    return made.ending
  end

  -- Says that this worker lives. `renewed` is when it did last, as its holds say.
  local function renew(renewed)
    if now - tonumber(renewed or 0) < RENEW_AFTER then return end
    call('ZADD', base .. ':w', now + LEASE, worker)
    call('HSET', mine, '', now)
    keep(base .. ':w', mine)
    due_at(now + LEASE)
  end

  -- Why a step is refused, and when it may not be.
  local function refusing()
    if made.refusing then return made.refusing end
    local function room(c, check, over)
      if check[KIND] == 'sliding' then return sliding_rest().room(c, over) end
      if check[KIND] == 'held' then return FIRST_RETRY end
      return check[ENDS] > 0 and max(1, check[ENDS] * 1000 - now) or NEVER
    end

    -- Of several that refuse, what lasts longest.
    local function refused(checks, counters)
      local worst, worst_ms, used = nil, 0, {}
      for i, check in ipairs(checks) do
        local c = counters[i]
        used[i] = c.value
        local over = check[TAKE] - (room_of(check) - c.value)
        if over > 0 then
          local ms = room(c, check, over)
          if not worst or (worst_ms >= 0 and (ms < 0 or ms > worst_ms)) then worst, worst_ms = i, ms end
        end
      end
      local check, alerts = checks[worst], {}
      if check[ALERTS] then
        local level = alert_level(counters[worst], check, check[AMOUNT])
        if level > 0 then alerts[1] = {check[NAME], level, used[worst], check[AMOUNT]} end
      end
      return answer('refused', nil, worst - 1, worst_ms, used, nil, alerts)
    end
    made.refusing = {room = room, refused = refused}
    return made.refusing
  end

  -- Everything is taken, or nothing.
  local function taking()
    if made.taking then return made.taking end
    local function taken(record, counters)
      local used, alerts = {}, {}
      for i, item in ipairs(record[1]) do
        local check, c = item[1], counters and counters[i]
        if not c then
          c = check[KIND] == 'calendar' and calendar().load(check) or load(check)
          if c.is_window == false then c.value = 0 end
        end
        used[i] = c.value
        -- A limit that only watches tells of what is asked for; a budget, of what is spent.
        if check[ALERTS] and not check[REFUSES] and c.value > check[AMOUNT] and c.is_window ~= false then
          local level = alert_level(c, check, c.value)
          if level > 0 then alerts[#alerts + 1] = {check[NAME], level, c.value, check[AMOUNT]} end
        end
      end
      local pace = record[2] == 'queued' and queue().retry_ms() or nil
      return answer('taken', record[2], nil, pace, used, nil, alerts)
    end

    -- Takes a free slot where nobody waits, else a place in the queue. False where that is full.
    local function sit(entry, seat, record)
      if capacity ~= seat[1] then
        capacity = seat[1]
        grant()
      end
      if in_use < capacity and waiting == 0 then
        in_use, record[2] = in_use + 1, 'held'
        return true
      end
      return queue().join(entry, seat, record)
    end

    -- `takes` is what is taken of each check, where that is not what they say.
    local function take(entry, checks, seat, takes)
      for i, n in ipairs(takes or {}) do checks[i][TAKE] = n end
      local known = call('HMGET', mine, entry, '')
      renew(known[2])
      if known[1] then
        grant()
        return taken(cmsgpack.unpack(call('HGET', mine, entry)))
      end
      local counters, unseeded, is_over = {}, {}, false
      for _, check in ipairs(checks) do
        if check[KIND] == 'calendar' and not is_now(check) then return answer('clock') end
      end
      for i, check in ipairs(checks) do
        local c = load(check)
        counters[i] = c
        if c.is_known == false then unseeded[#unseeded + 1] = i - 1 end
        if check[TAKE] > room_of(check) - c.value then is_over = true end
      end
      if #unseeded > 0 then return answer('unseeded', nil, nil, nil, nil, unseeded) end
      if is_over then return refusing().refused(checks, counters) end
      local record = {{}, 'none', '', 1, 1}
      if seat and not sit(entry, seat, record) then return answer('full', nil, nil, queue().retry_ms()) end
      for i, check in ipairs(checks) do record[1][i] = {check, check[TAKE], count(counters[i], check, check[TAKE]), 0} end
      call('HSET', mine, entry, cmsgpack.pack(record))
      if record[2] == 'queued' and in_use < capacity then
        grant()
        record = cmsgpack.unpack(call('HGET', mine, entry))
      end
      return taken(record, counters)
    end
    made.taking = {taken = taken, take = take}
    return made.taking
  end

  -- The steps that are not on every request's road.
  local function others()
    if made.others then return made.others end
    local function top_up(entry, more)
      grant()
      local packed = call('HGET', mine, entry)
      if not packed then return answer('gone') end
      local record, wanted = cmsgpack.unpack(packed), {}
      for i, item in ipairs(record[1]) do
        local check = item[1]
        local n = check[METER] == 'requests' and 0 or ending().amount_of(more, check[METER])
        if n > 0 and check[KIND] ~= 'held' then
          local c = check[KIND] == 'calendar' and calendar().load(check) or load(check)
          if c.is_window ~= false then
            local over = n - (room_of(check) - c.value)
            if over > 0 then return answer('refused', nil, i - 1, refusing().room(c, check, over)) end
            wanted[#wanted + 1] = {item, c, n}
          end
        end
      end
      for _, w in ipairs(wanted) do
        local item, c, n = w[1], w[2], w[3]
        local is_old = item[1][KIND] == 'sliding' and item[3] ~= c.bucket
        if is_old and not sliding_rest().adjust(item[1], item[3], n) then
          -- What it took at first has left the window: the rest is counted where it is asked for.
          item[2], item[3], item[4] = n, count(c, item[1], n), min(MOST, item[4] + item[2])
        else
          if not is_old then count(c, item[1], n) end
          item[2] = item[2] + n
        end
      end
      call('HSET', mine, entry, cmsgpack.pack(record))
      return taking().taken(record)
    end

    local function claim(entry)
      renew(call('HGET', mine, ''))
      local packed = call('HGET', mine, entry)
      local record = packed and cmsgpack.unpack(packed)
      if not record or (record[2] ~= 'granted' and record[2] ~= 'held') then return 0 end
      if record[2] == 'granted' then
        call('ZREM', base .. ':u', worker .. '|' .. entry)
        record[2] = 'held'
        call('HSET', mine, entry, cmsgpack.pack(record))
      end
      return 1
    end

    local function presence(entries_waiting)
      grant()
      local states = {}
      for i, entry in ipairs(entries_waiting) do
        local packed = call('HGET', mine, entry)
        states[i] = packed and cmsgpack.unpack(packed)[2] or 'none'
      end
      return cmsgpack.pack({now, max(0, call('HLEN', mine) - 1), states, grants})
    end

    local function attend(entries_waiting)
      if call('HLEN', mine) > 1 then renew() end
      return presence(entries_waiting)
    end

    -- What a worker says that it holds, each check in its place: a later reply names them by that.
    local function hold_anyway(entry, checks, seat)
      local record = {{}, 'none', '', 1, 1}
      ending().finish_all(entry, ending().adopted(entry) or {}, UNDO)
      for _, check in ipairs(checks) do
        local n = 0
        -- What slides was taken some time ago, in a window of which nothing is known here.
        if check[KIND] == 'held' or (check[KIND] == 'calendar' and is_now(check)) then
          local c = load(check)
          n = max(0, min(check[TAKE], MOST - c.value))
          count(c, check, n)
        end
        record[1][#record[1] + 1] = {check, n, 0, 0}
      end
      if seat then in_use, capacity, record[2] = in_use + 1, seat[1], 'held' end
      call('HSET', mine, entry, cmsgpack.pack(record))
    end

    -- What the store has queued or granted is held all the same, where its worker says so.
    local function seat_anyway(entry, seat, record)
      if not seat or record[2] == 'held' then return end
      ending().leave(worker, entry, record, false)
      in_use, capacity, record[2] = in_use + 1, seat[1], 'held'
      call('HSET', mine, entry, cmsgpack.pack(record))
    end

    local function declare(held, pending)
      renew()
      local left_alone = {['']=true}
      for _, entry in ipairs(pending) do left_alone[entry] = true end
      for _, one in ipairs(held) do left_alone[one[1]] = true end
      for _, entry in ipairs(call('HKEYS', mine)) do
        if not left_alone[entry] then ending().ended(entry, UNDO, {}) end
      end
      for _, one in ipairs(held) do
        local entry, checks, seat = one[1], one[2], one[3]
        local packed = call('HGET', mine, entry)
        if packed then
          seat_anyway(entry, seat, cmsgpack.unpack(packed))
        else
          hold_anyway(entry, checks, seat)
        end
      end
      return presence({})
    end

    local function seed(name, starts, ends, amount, used, seen, seen_since)
      local check = {name, 'calendar', '', amount, 0, true, true, 1, starts, ends}
      local c = load(check)
      if c.is_known then return 1 end
      -- The sum does not reach back to what was dropped.
      if c.dropped > 0 and seen_since <= c.dropped then return 0 end
      local amounts, ends, is_seen = base .. ':p:' .. name, base .. ':pz:' .. name, {}
      for _, entry in ipairs(seen) do is_seen[entry] = true end
      -- What ended before is in the sum, or nowhere; of the rest there is a bounded number.
      local unsettled = call('ZRANGEBYSCORE', ends, seen_since, '+inf')
      for from = 1, #unsettled, 500 do
        local up_to = min(#unsettled, from + 499)
        for i, n in ipairs(call('HMGET', amounts, unpack(unsettled, from, up_to))) do
          local entry = unsettled[from + i - 1]
          if n and not is_seen[entry] then
            used = min(MOST, used + tonumber(n))
            seen[#seen + 1] = entry
          end
        end
      end
      calendar().note_counted(name, seen)
      unlink(amounts, ends)
      c.used, c.told, c.seen_since, c.dropped = used, 0, seen_since, 0
      call('HSET', c.key, 'k', era, 'x', 0, 'y', seen_since, 'b', 0)
      calendar().write(c, true)
      -- What was passed before is old news.
      alert_level(c, check, used)
      return 1
    end

    -- What the ledger's recovery knows of an entry ends it, whoever held it: its worker is dead, or soon will be.
    local function recover(entry, spent, checks)
      for _, of in ipairs(call('ZRANGE', base .. ':w', 0, -1)) do
        local packed = of ~= worker and call('HGET', base .. ':h:' .. of, entry)
        if packed then
          local record = cmsgpack.unpack(packed)
          call('HDEL', base .. ':h:' .. of, entry)
          ending().leave(of, entry, record, false)
          return ended_answer(ending().finish_all(entry, record[1], spent))
        end
      end
      return ended_answer(ending().ended(entry, spent, checks))
    end

    local function place(entry)
      local packed = call('HGET', mine, entry)
      local record = packed and cmsgpack.unpack(packed)
      return record and record[2] == 'queued' and queue().place(record[3], entry) or 0
    end
    made.others = {recover = recover, top_up = top_up, claim = claim, attend = attend, declare = declare, seed = seed,
      place = place}
    return made.others
  end

  -- Who is dead holds nothing, and what nobody claims goes on; what is of another era is untrue.
  local function beginning()
    if made.beginning then return made.beginning end
    local function orphan(of, entry, record)
      local has_begun = record[2] ~= 'queued' and record[2] ~= 'granted'
      ending().leave(of, entry, record, false)
      if not has_begun then
        ending().finish_all(entry, record[1], UNDO)
        return
      end
      local money = {}
      for _, item in ipairs(record[1]) do
        local check = item[1]
        local is_money = check[KIND] == 'calendar'
        if is_money and not (calendar().load(check).is_window and calendar().has_counted(check[NAME], entry)) then
          money[#money + 1] = item
        elseif check[KIND] ~= 'sliding' then
          ending().finish(entry, item, nil, 0)
        end
      end
      if #money > 0 then
        call('HSET', base .. ':o', entry, cmsgpack.pack(money))
        call('ZADD', base .. ':oz', now + ORPHAN, entry)
      end
    end

    local function bury(dead)
      local all = call('HGETALL', base .. ':h:' .. dead)
      for i = 1, #all, 2 do
        if all[i] ~= '' then orphan(dead, all[i], cmsgpack.unpack(all[i + 1])) end
      end
      call('DEL', base .. ':h:' .. dead)
      call('ZREM', base .. ':w', dead)
    end

    local function give_up(member)
      local at = string.find(member, '|', 1, true)
      local of, entry = string.sub(member, 1, at - 1), string.sub(member, at + 1)
      call('ZREM', base .. ':u', member)
      local packed = call('HGET', base .. ':h:' .. of, entry)
      if not packed then return end
      local record = cmsgpack.unpack(packed)
      call('HDEL', base .. ':h:' .. of, entry)
      ending().finish_all(entry, record[1], UNDO)
      ending().leave(of, entry, record, false)
    end

    local function look()
      for _, dead in ipairs(call('ZRANGEBYSCORE', base .. ':w', '-inf', now)) do bury(dead) end
      for _, member in ipairs(call('ZRANGEBYSCORE', base .. ':u', '-inf', now)) do give_up(member) end
      for _, entry in ipairs(call('ZRANGEBYSCORE', base .. ':oz', '-inf', now)) do
        for _, item in ipairs(ending().adopted(entry) or {}) do ending().finish(entry, item, item[2], 0) end
        call('ZREM', base .. ':oz', entry)
      end
      due = 0
      for _, kind in ipairs({':w', ':u', ':oz'}) do
        local first = call('ZRANGE', base .. kind, 0, 0, 'WITHSCORES')
        if first[1] then due_at(tonumber(first[2])) end
      end
      keep(tag, base .. ':w', base .. ':o', base .. ':oz')
    end

    -- What was there is untrue. What is held, and what was spent, will be said anew.
    local function begin()
      for _, of in ipairs(call('ZRANGE', base .. ':w', 0, -1)) do call('DEL', base .. ':h:' .. of) end
      for _, member in ipairs(call('ZRANGE', base .. ':q', 0, -1)) do
        call('DEL', base .. ':l:' .. string.sub(member, 17))
      end
      for _, kind in ipairs({':t', ':w', ':q', ':r', ':f', ':u', ':o', ':oz'}) do call('DEL', base .. kind) end
      call('DEL', mine)
      era = run .. '@' .. string.format('%.0f', now)
      due, in_use, capacity, waiting = 0, 0, 0, 0
      known_state = {d = 0, n = 0, c = 0, k = 0}
      call('HSET', tag, 'e', era)
      keep(tag)
    end
    made.beginning = {look = look, begin = begin}
    return made.beginning
  end

  -- The step -----------------------------------------------------------------------------------------------------------
  if not era or string.sub(era, 1, #run + 1) ~= run .. '@' then
    beginning().begin()
  elseif due > 0 and due <= now then
    beginning().look()
    if asker == '' then grant() end
  end

  local reply
  if op == 'take' then
    reply = taking().take(payload[3], payload[4], payload[5], payload[6])
  elseif op == 'release' then
    reply = ended_answer(ending().ended(payload[3], payload[4], payload[5]))
  else
    reply = others()[op](unpack(payload, 3, 9))
  end

  local changed = {}
  for field, value in pairs({d = due, n = in_use, c = capacity, k = waiting}) do
    if value ~= known_state[field] then
      changed[#changed + 1] = field
      changed[#changed + 1] = value
    end
  end
  if #changed > 0 then call('HSET', tag, unpack(changed)) end
  if made.queue then made.queue.remember() end
  return reply
end

return step()
