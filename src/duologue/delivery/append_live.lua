-- A delta. ARGV 5 message, 6 attempt, 7 from_seq, 8 seq, 9 text, 10 frame. Returns 1, or 0 if it is refused: the text is
-- not known (never opened, ended, expired), another attempt is the open one, or a piece between is missing.
local message, attempt, text = ARGV[5], ARGV[6], ARGV[9]
local field = 'l:' .. message
local live = load_number(field)
if not live then return 0 end
local open_attempt, seq, length, conversation = string.match(live, '^(%d+) (%d+) (%d+) (.*)$')
if open_attempt ~= attempt or seq + 1 ~= tonumber(ARGV[7]) then return 0 end
local key = live_key(message)
local written = redis.call('APPEND', key, text)
if written ~= length + #text then -- what was there has expired
  redis.call('DEL', key)
  redis.call('HDEL', state_key, field)
  return 0
end
redis.call('PEXPIRE', key, LIVE_MS)
publish('d', '-', ARGV[10])
redis.call('HSET', state_key, 'number', number, field, attempt .. ' ' .. ARGV[8] .. ' ' .. written .. ' ' .. conversation)
return 1
